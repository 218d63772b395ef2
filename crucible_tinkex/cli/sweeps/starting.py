"""`crucible init`: a commented experiment file to begin with."""

from __future__ import annotations

import shlex
from pathlib import Path

from crucible_tinkex.errors import ConfigError, StorageError
from crucible_tinkex.storage.files import reason

TEMPLATE = """\
# An experiment: what is trained, on what, and what is tried. Paths start from this file's folder.
# Check it, spending nothing:  crucible plan THIS-FILE
# Run it, or go on with it:    crucible run THIS-FILE
# Every key:                   docs/configuration.md

[service]
base_url = "embedded"            # trains on this machine, no account; without it: hosted Tinker

[model]
base = "smollm2-135m-instruct"   # "nano" is tiny, for trying things out

[data]
train = "train.jsonl"            # rows as {"prompt": "..", "completion": ".."}, docs/data.md
eval_fraction = 0.1              # hold out a tenth of the rows; or eval = "eval.jsonl"
too_long = "truncate"            # of rows over train.max_length; "refuse" or "drop"

[train]
batch_size = 8                   # rows of a step
max_steps = 100                  # steps of a trial; or epochs = 1
max_length = 512                 # tokens of a row

[search]
strategy = "auto"                # looks around what worked before; or "grid", "random", "tpe", ..
metric = "eval/nll"              # what ranks: also "eval/accuracy", "train/nll"
trials = 12                      # configurations

# [search.space]                 # what is tried; auto chooses learning rates and ranks
# "lora.rank" = [8, 32]
# "optimizer.learning_rate" = { low = 1e-5, high = 1e-2, log = true }

# [budget]                       # hard caps; also trials, tokens, dollars
# hours = 1
# steps = 1000

# [notify]                       # told when it ends, or when there is trouble
# command = "notify-send crucible"

[run]
max_concurrent = 4               # trials at the same time
# storage = "runs"               # folder of the sweeps
"""


def write_template(file: Path) -> None:
    """Raises `ConfigError` if the file exists."""
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(TEMPLATE.replace("THIS-FILE", shlex.quote(file.name)))
    except FileExistsError:
        raise ConfigError(f"{file} exists; it is not overwritten, choose another name") from None
    except OSError as e:
        raise StorageError(f"cannot write {file}: {reason(e)}") from e
    print(f"{file}: set data.train, then: crucible plan {shlex.quote(str(file))}")
