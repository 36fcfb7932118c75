"""The results of a study, as an HTML page and in optuna-dashboard."""
