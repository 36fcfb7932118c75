"""The database that remembers a search: trials, studies, locks; the only home of Optuna."""
