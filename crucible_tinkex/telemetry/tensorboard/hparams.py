"""What TensorBoard's HParams, text and custom scalars pages read, as records.

The columns of the HParams page and the charts are declared in one file of the first trial's run: at
the root of the log folder it would show as a run of its own, named `.`. Both pages look for them in
any run. Texts and hyper-parameters are written as given: the caller has removed all secrets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from crucible_tinkex.telemetry.tensorboard.records import START_TAG, header
from crucible_tinkex.telemetry.tensorboard.without_torch import without_torch

with without_torch():
    from tensorboardX import summary
    from tensorboardX.proto.api_pb2 import DataType, Experiment, HParamInfo, MetricInfo, MetricName
    from tensorboardX.proto.api_pb2 import Status as SessionStatus
    from tensorboardX.proto.event_pb2 import Event as Record
    from tensorboardX.proto.plugin_hparams_pb2 import (
        HParamsPluginData,
        SessionEndInfo,
        SessionStartInfo,
    )
    from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata

HParam = bool | int | float | str

METRICS = ("eval/nll", "eval/accuracy", "train/nll")
"""The columns of the HParams table; each is the tag of a scalar."""

CHARTS: dict[str, dict[str, list[Any]]] = {
    "Held out": {
        "nll, nats per token": ["Multiline", ["eval/nll"]],
        "accuracy": ["Multiline", ["eval/accuracy"]],
    },
    "Training": {
        "nll, nats per token": ["Multiline", ["train/nll"]],
        "learning rate": ["Multiline", ["optim/lr"]],
    },
}
"""The custom scalars page: category, chart, kind of chart, tags. One tag a chart: a line a run."""

_NUMBER, _TEXT, _FLAG = "DATA_TYPE_FLOAT64", "DATA_TYPE_STRING", "DATA_TYPE_BOOL"


def definitions(types: Mapping[str, str]) -> list[Any]:
    """The columns, for hyper-parameters with these types, and the charts."""
    experiment = Experiment(
        hparam_infos=[
            HParamInfo(name=name, type=DataType.Value(kind)) for name, kind in sorted(types.items())
        ],
        metric_infos=[MetricInfo(name=MetricName(tag=tag)) for tag in METRICS],
    )
    content = HParamsPluginData(experiment=experiment)
    return [
        header(0.0),
        Record(summary=_hparams_summary("_hparams_/experiment", content)),
        Record(summary=summary.custom_scalars(CHARTS)),
    ]


def session_start(time_s: float, values: Mapping[str, HParam]) -> Any:
    info = SessionStartInfo(start_time_secs=time_s)
    for key, value in values.items():
        _set_hparam(info.hparams[key], value)
    content = HParamsPluginData(session_start_info=info)
    return Record(wall_time=time_s, summary=_hparams_summary(START_TAG, content))


def session_end(time_s: float, ok: bool) -> Any:
    status = SessionStatus.Value("STATUS_SUCCESS" if ok else "STATUS_FAILURE")
    content = HParamsPluginData(
        session_end_info=SessionEndInfo(status=status, end_time_secs=time_s)
    )
    return Record(wall_time=time_s, summary=_hparams_summary("_hparams_/session_end_info", content))


def config_text(time_s: float, text: str) -> Any:
    return Record(wall_time=time_s, summary=summary.text("config", _code_block(text)))


def state_text(time_s: float, state: str) -> Any:
    """How a trial or a configuration stands: the texts page shows it, by run."""
    return Record(wall_time=time_s, summary=summary.text("state", state))


def band_charts(bands: Mapping[str, tuple[str, str]]) -> Any:
    """Charts of a line with a band: by tag, the tags of its lower and upper edge."""
    charts = {tag: ["Margin", [tag, low, high]] for tag, (low, high) in bands.items()}
    return Record(summary=summary.custom_scalars({"Seeds: mean, lowest, highest": charts}))


def _hparams_summary(tag: str, content: Any) -> Any:
    plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=content.SerializeToString())
    return Summary(value=[Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))])


def shown(hparams: Mapping[str, Any]) -> dict[str, HParam]:
    """What the plug-in can show: nothing for None, text for lists and the like; and `log10_lr`,
    because its plots have a linear axis by default."""
    values = {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in hparams.items()
        if value is not None
    }
    for key, value in hparams.items():
        if key.rsplit(".", 1)[-1] in ("learning_rate", "lr") and isinstance(value, int | float):
            if value > 0:
                values["log10_lr"] = math.log10(value)
            break
    return values


def type_name(value: HParam) -> str:
    if isinstance(value, bool):
        return _FLAG
    return _TEXT if isinstance(value, str) else _NUMBER


def _set_hparam(slot: Any, value: HParam) -> None:
    if isinstance(value, bool):
        slot.bool_value = value
    elif isinstance(value, int | float):
        slot.number_value = float(value)
    else:
        slot.string_value = value


def _code_block(text: str) -> str:
    """A Markdown code block whose fence is longer than any that `text` contains."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
