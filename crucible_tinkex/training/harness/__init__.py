"""An experiment of named steps, run under conditions and repeats, and resumed where it stopped.

```python
def steps(plan):
    register_training_step(plan, epochs=3, batch_size=8, checkpoint_every=100)
    plan.add_step("look", lambda ctx: ctx.session.evaluate(held_out).metrics)

results = run(experiment, steps, session=session, dataset=rows, folder="runs/scifact")
results.metrics, results.best_checkpoint, results.final_metrics, results.trace_id
```
"""

from crucible_tinkex.training.harness.plan import Hooks, Plan, StepContext
from crucible_tinkex.training.harness.results import CellResult, HarnessResults
from crucible_tinkex.training.harness.running import arun, run
from crucible_tinkex.training.harness.training import register_training_step

__all__ = [
    "CellResult",
    "HarnessResults",
    "Hooks",
    "Plan",
    "StepContext",
    "arun",
    "register_training_step",
    "run",
]
