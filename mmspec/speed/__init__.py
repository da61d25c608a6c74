"""The cost model: what a round costs, what it yields, and which shape of tree is the fastest."""

from .acceptance import Acceptance
from .auto_tree import AutoTree
from .calibration import measure_costs
from .costs import Costs, Curve, Line
from .prediction import Prediction, predict
from .shapes import Shape

__all__ = ["Acceptance", "AutoTree", "Costs", "Curve", "Line", "Prediction", "Shape", "measure_costs", "predict"]
