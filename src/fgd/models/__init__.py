"""Models: pairs of pure functions, `init(key) -> params` and `apply(params, x) -> y`."""

from fgd.models._cnn import cnn as cnn
from fgd.models._equinox import from_equinox as from_equinox
from fgd.models._flax import from_flax as from_flax
from fgd.models._mlp import linear as linear, mlp as mlp
from fgd.models._model import Model as Model, Variables as Variables
