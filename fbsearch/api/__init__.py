"""What a Python user calls: a search, its study, a trained model, a scikit-learn classifier. The commands' equal."""
