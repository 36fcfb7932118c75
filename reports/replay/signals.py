"""What an early look at a run says about its configuration: rank correlations in a table, epoch by epoch.

    uv run python reports/replay/signals.py studies/tables/digits.jsonl.xz

A signal of one seed's run after an epoch is compared with the mean final accuracy of the other seeds. Printed are
Spearman's correlation, and which share of the best twentieth is among the best half and the best quarter by the signal;
all three are means over the seeds.
"""

import sys
from pathlib import Path

import numpy as np
from scipy.stats import rankdata, spearmanr

from fbsearch.bench.table_file import TableRun, read_table

SIGNALS = {
    "validation accuracy": lambda run, epoch: run.val_accuracy[epoch],
    "validation loss": lambda run, epoch: -run.val_loss[epoch],
    "training accuracy": lambda run, epoch: run.train_accuracy[epoch],
    "training loss": lambda run, epoch: -run.train_loss[epoch],
}


def main(path: Path) -> None:
    rows = [row for row in read_table(path).rows.values() if len(row.runs) > 1]
    spread = np.mean([np.std([run.value for run in row.runs], ddof=1) for row in rows])
    print(f"{len(rows)} configurations; deviation between seeds {spread:.2%} on average")
    for epoch in range(len(rows[0].runs[0].val_accuracy)):
        for name, signal in SIGNALS.items():
            found = np.mean(
                [judge([row.runs[seed] for row in rows], rows, signal, epoch) for seed in seeds(rows)], axis=0
            )
            ranks = f"rank correlation {found[0]:.2f}, best half {found[1]:.0%}, quarter {found[2]:.0%}"
            print(f"epoch {epoch + 1}  {name:20} {ranks}")


def seeds(rows: list) -> range:
    return range(min(len(row.runs) for row in rows))


def judge(shown: list[TableRun], rows: list, signal, epoch: int) -> tuple[float, float, float]:
    worth = np.array([row.judge(run) for row, run in zip(rows, shown, strict=True)])
    values = np.array([signal(run, epoch) for run in shown])
    best = np.argsort(-worth, kind="stable")[: max(1, len(rows) // 20)]
    place = rankdata(-values)[best] / len(rows)
    return spearmanr(values, worth).statistic, np.mean(place <= 0.5), np.mean(place <= 0.25)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
