"""What happened to models, checkpoints, artifacts and datasets of a storage, beside the training.

Each fact has one record: the log of models, the journal of a sweep, or, where there is no other,
the `ledger`. From that record come the event that handlers are given (`tell`) and the row that
`Telemetry.query` finds (`reading`), so neither can count it twice.
"""
