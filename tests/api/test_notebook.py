"""What a notebook shows of a study."""

from made_studies import make_study
from optuna.storages import RDBStorage

from fbsearch.api.notebook import MAX_PARTS, study_html
from fbsearch.report.text import describe_part
from fbsearch.report.trials_table import trials_frame
from fbsearch.report.worth import estimate_worth


def test_study_in_a_notebook_names_what_mattered(storage: RDBStorage) -> None:
    study = make_study(storage, 60)
    parts = [describe_part(part) for part in estimate_worth(trials_frame(study)).parts[:MAX_PARTS]]
    html = study_html(study)
    assert parts
    for name, _ in parts:
        assert f"<li><b>{name}</b>: " in html
