"""The results of a study, as an HTML page and in optuna-dashboard. Must not train anything."""
