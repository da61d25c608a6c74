"""The cost model: what a round costs, what it yields, and which shape of tree is the fastest."""

from .acceptance import Acceptance
from .costs import Costs, Curve, Line
from .prediction import Prediction, predict
from .shapes import Shape

__all__ = ["Acceptance", "Costs", "Curve", "Line", "Prediction", "Shape", "measure_costs", "predict"]


def __getattr__(name: str):
    if name == "measure_costs":  # it runs the loop, which imports the trees, which import this package
        from .calibration import measure_costs

        return measure_costs
    raise AttributeError(f"module 'mmspec.speed' has no attribute {name!r}")
