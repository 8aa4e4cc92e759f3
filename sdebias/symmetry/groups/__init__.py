"""The groups: how each acts on the parameters that it names."""

from .custom import FromAction as FromAction
from .custom import FromFields as FromFields
from .custom import from_action as from_action
from .custom import from_fields as from_fields
from .linear import GeneralLinear as GeneralLinear
from .linear import Orthogonal as Orthogonal
from .product import Product as Product
from .rescaling import Rescaling as Rescaling
from .rescaling import Scaling as Scaling
from .translation import Translation as Translation
