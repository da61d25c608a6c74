"""The cost model: the cost of a round, its yield, and the fastest shape of tree."""

from .acceptance import Acceptance
from .auto_tree import AutoTree
from .calibration import measure_costs
from .costs import Costs, Curve, Line
from .prediction import Prediction, predict
from .shapes import Shape

__all__ = ["Acceptance", "AutoTree", "Costs", "Curve", "Line", "Prediction", "Shape", "measure_costs", "predict"]
