"""One table of what every argument of every public function refuses, and what it then says.

tests/test_messages.py has the mistakes that are common or need a story; here is everything.
"""

import inspect
import re

import equinox
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_api import FUNCTIONS

import fgd

pytestmark = pytest.mark.usefixtures("as_users")

NAN, INF, HUGE = float("nan"), float("inf"), 10**400
X, Y = np.ones([6, 3], np.float32), np.ones([6, 2], np.float32)
DATA = X, Y
KEY, IMAGES = jax.random.key(0), np.ones([2, 6, 6, 1], np.float32)
MODEL, CNN = fgd.models.mlp([3, 2]), fgd.models.cnn([6, 6], [2], [3], dropout=0.5)
PARAMS = MODEL.init(0)
EQUINOX = equinox.nn.Linear(3, 2, key=jax.random.key(0))
LINEAR, FLAX = fgd.models.linear(3, 2), fgd.models.from_flax(nn.Dense(2), X)
LOSS = fgd.supervised(MODEL, fgd.losses.mse)
STEP = fgd.train_step(LOSS, fgd.sgd(0.1))
STATE = STEP.init(PARAMS)
WEIGHTS = {"weight": np.ones([2, 3], np.float32), "bias": np.ones(2, np.float32)}
WORDS, OBJECT = np.array(["a"] * 6), object()


# What is refused, and with which words: [(error, words, values…), …].
def ints(least, none=()):
    return [
        (TypeError, "must be an int, got", True, 1.5, "3", OBJECT, np.ones(2), NAN, *none),
        (ValueError, f"must be at least {least}, got", least - 1, -HUGE),
    ]


NONE = (None,)
SCALAR = [
    (TypeError, "must be a number, got", None, "1", True, OBJECT, 1j, KEY, HUGE, [[1], [1, 2]]),
    (ValueError, "must be a scalar, got shape", np.ones(2), []),
]
RATE = [*SCALAR, (ValueError, "must be finite and not negative", -0.1, NAN, INF)]
EPS = [*SCALAR, (ValueError, "must be finite and positive", 0, -1e-8, NAN, INF)]
DECAY = [*SCALAR, (ValueError, r"must be in \[0, 1\)", -0.1, 1, 2, NAN, INF)]
FLAG = [(TypeError, "must be True or False, got", None, 0, 1, "no", OBJECT, np.ones(2))]
FUNCTION = [(TypeError, "must be a function", 3, "f", X, OBJECT)]
PATH = [(TypeError, "must be a str or a Path, got", 3, b"x", OBJECT, X)]
TYPED_KEY = [
    (TypeError, "key must be a typed key", None, 0, "0", OBJECT, jax.random.PRNGKey(0)),
    (TypeError, "key must be a typed key", jax.random.split(KEY)),
]
SEED = [
    (TypeError, "key must be a seed such as 0, or", "0", 1.5, True, OBJECT, jax.random.PRNGKey(0)),
    (TypeError, "key must be a seed such as 0, or", np.ones(2), jax.random.split(KEY)),
    (ValueError, "does not fit in 32 bits", 2**40, -HUGE),
]
MESH = [
    (TypeError, "mesh must be a jax.sharding.Mesh", 2, "data", OBJECT, jax.devices()),
    (ValueError, 'expected one named "data"', jax.make_mesh((2,), ("x",))),
]
NUMBERS = [
    (TypeError, "expected an array of", None, "1", [1.0], OBJECT, WORDS, WORDS.astype(object)),
    (TypeError, "expected an array of", KEY, np.ones(6, "M8[s]")),
]
REALS = [*NUMBERS, (TypeError, "expected an array of real numbers", 1j, np.ones([6, 3], complex))]
FINITE = [*REALS[:1], (TypeError, "must be a number", True), (ValueError, "finite", NAN, INF, HUGE)]
ROWS = [
    (ValueError, "has no arrays", None, (), {}),
    (TypeError, "expected an array whose leading axis is rows", 3.0, "rows", ([1.0], X), OBJECT),
    (ValueError, "expected at least one row", X[:0], np.float32(1), (X, np.ones([0, 2]))),
    (ValueError, "must share their leading axis", (X, Y[:3])),
]
TREE = [
    (TypeError, "expected numbers", (X, WORDS), (X, Y.astype(object)), (X, np.ones(6, "M8[s]"))),
    (TypeError, "of another machine", (X, Y.astype(">f4"))),
]
ARRAYS = [*ROWS, *TREE, (TypeError, "data is an iterator", iter([DATA]))]
FLOATS = [
    (TypeError, "expected an array of floats", "w", OBJECT, WORDS, [WORDS]),
    (TypeError, "expected a float; only floats have gradients", 1, np.ones(2, int), [True], 1j),
]
RUN = {
    "batch_size": [*ints(1), (ValueError, "larger than the data's 6 rows", 7, HUGE)],
    "num_steps": [
        *ints(0),
        (ValueError, "give exactly one", None),
        (ValueError, "would pass 2³¹", HUGE),
    ],
    "num_epochs": [*ints(0), (ValueError, "would pass 2³¹", HUGE)],
    "shuffle": FLAG,
    "record_every": [*ints(1, NONE), (ValueError, "does not divide", 3, HUGE)],
    "mesh": MESH,
}
STEPS = [(TypeError, "step must come from fgd.train_step", None, 3, LOSS, STEP.update, OBJECT)]
STATES = [(TypeError, "expected the state of step.init", None, 3.0, "state", PARAMS, OBJECT, X)]
SHAPES = [(ValueError, "has shape", X[0], X[:, :2], 1.0, IMAGES)]
LABELS = [
    *REALS[:1],
    (TypeError, "expected integers", np.ones(6, np.float32), True),
    (ValueError, r"expected logits \[rows, classes\] and labels \[rows\]", np.ones([6, 1], int), 1),
    (ValueError, "is out of range", np.full(6, 3), np.full(6, -1)),
]
LOGITS = [
    *REALS,
    (ValueError, r"expected logits \[rows, classes\] and", X[:, 0], X[:5], 1.0, X[None]),
    (ValueError, "one class", X[:, :1], X[:, :0]),
]
TARGETS = [
    *REALS,
    (ValueError, "expected equal shapes", np.ones([6, 1], int), 1),
    (
        ValueError,
        "neither 0 nor 1",
        np.full(6, 2),
        np.full(6, -1),
        np.full(6, 0.5),
        np.full(6, NAN),
    ),
]
BINARY_LOGITS = [*REALS, (ValueError, "expected equal shapes", X, X[:, :1], 1.0)]
ROW_WEIGHTS = [
    (TypeError, "expected an array of", "w", OBJECT, WORDS, [1.0] * 6),
    (ValueError, "weights have shape", 1.0, np.ones(5), np.ones([1, 6]), np.ones([6, 1, 1])),
    (ValueError, "negative or NaN", np.float32([1, 1, 1, 1, 1, -1]), np.full(6, NAN)),
    (ValueError, "all weights are 0", np.zeros(6)),
]
REDUCTION = [(ValueError, "reduction must be", None, "average", 1, [], OBJECT, True)]
POOLED = [*NUMBERS[:1], (ValueError, r"expected \[rows, height, width, channels\]", X, 1.0)]
WINDOW = [*ints(1), (TypeError, "must be an int", (2,), (1, 2, 3), [2, 2])]
LAYERS = [
    (
        ValueError,
        "params of layers",
        None,
        3,
        "w",
        [],
        X,
        PARAMS * 2,
        [{"w": X}],
        LINEAR.init(0)["w"],
    )
]
SIZES = [
    (
        TypeError,
        "must be a list of ints|must be an int",
        None,
        3,
        "28",
        [True, 6],
        [1.5, 2],
        OBJECT,
    )
]
SIZES_ = [*SIZES, (ValueError, "at least", [], [0, 3], [-1, 2])]
SOME = [*ints(1), (ValueError, "sizes for 1 conv", [1, 2])]
PICTURE = [(TypeError, "ax must be matplotlib's Axes", 3, "ax", OBJECT)]
LINE = [*REALS, (ValueError, "expected .* not empty", np.ones([2, 2]), 1.0, np.ones(0))]
AXIS = [*REALS, (ValueError, "axes of|expected .* not empty", np.ones(5), np.ones([2, 2]), 1.0)]
PAIR = [
    (TypeError, "must be a pair", None, 3, "ab", (1,), (1, 2, 3)),
    (ValueError, "must rise", (1, 1), (2, 1)),
    (ValueError, "must be finite", (0, INF), (NAN, 1)),
    (TypeError, "expected an array of real", ("a", "b")),
]
NAMES = [(TypeError, "names must be", 3, "fc", ["fc"], OBJECT)]
FLATTENED = [
    (TypeError, "flattened must", 3, "fc", ["fc"], OBJECT),
    (TypeError, "must be an int", {"": 1.5}),
    (ValueError, "at least 1", {"": 0}),
]
SCHEDULE = [
    (TypeError, "evaluate_every must be an int", True, 1.5, "3", OBJECT),
    (ValueError, "at least 1", 0, -1),
]


def table():
    """By function: what its messages begin with, how it is called well, what it refuses."""
    optimizer = {"learning_rate": 0.1}
    fitted = {"step": STEP, "state": STATE, "data": DATA, "num_steps": 2}
    pooled = {"x": IMAGES}
    classes = {"logits": X, "labels": np.zeros(6, int)}
    curves = {"losses": np.ones([2, 3]), "a": np.ones(2)}
    heat = {"values": np.ones([2, 3]), "a": np.ones(2), "b": np.ones(3)}
    cnn = {"image_shape": [6, 6], "channels": [2], "features": [3]}
    return {
        "fgd.sgd": ("sgd", optimizer, {"learning_rate": RATE}),
        "fgd.momentum": (
            "momentum",
            optimizer,
            {"learning_rate": RATE, "decay": DECAY, "nesterov": FLAG, "averaging": FLAG},
        ),
        "fgd.adagrad": (
            "adagrad",
            optimizer,
            {
                "learning_rate": RATE,
                "eps": EPS,
                "initial_accumulator_value": RATE,
                "eps_in_sqrt": FLAG,
            },
        ),
        "fgd.rmsprop": (
            "rmsprop",
            optimizer,
            {"learning_rate": RATE, "decay": DECAY, "eps": EPS, "eps_in_sqrt": FLAG},
        ),
        "fgd.adam": (
            "adam",
            optimizer,
            {"learning_rate": RATE, "b1": DECAY, "b2": DECAY, "eps": EPS},
        ),
        "fgd.fit": (
            "fit",
            fitted,
            {"step": STEPS, "state": STATES, "data": ARRAYS, **RUN, "max_memory": ints(1)},
        ),
        "fgd.train": (
            "train",
            fitted,
            {
                "step": STEPS,
                "state": STATES,
                "data": [*ROWS[:1], *ROWS[2:], *TREE],
                **RUN,
                "evaluate": [(TypeError, "expected an array whose", 3.0, "rows"), *ROWS[2:], *TREE],
                "evaluate_every": [*SCHEDULE, (ValueError, "neither evaluate nor stop_when", 1)],
                "log": [
                    (TypeError, "log must be a path, a function", 3, OBJECT, X),
                    (ValueError, "must end in", "a.txt"),
                ],
                "stop_when": FUNCTION,
                "checkpoints": [
                    (TypeError, r"checkpoints must be fgd.Checkpoints\(directory\)", "a", 3, OBJECT)
                ],
                "on_divergence": [
                    (ValueError, 'on_divergence must be "raise" or "continue"', None, "stop", True)
                ],
            },
        ),
        "fgd.Checkpoints": (
            "Checkpoints",
            {"directory": "never made"},
            {
                "directory": [
                    (TypeError, "must be a str or a Path", None, 3, OBJECT),
                    (NotADirectoryError, "expected a directory or a new path", __file__),
                ],
                "every": ints(1, NONE),
                "keep": ints(1, NONE),
                "best": [(TypeError, "must be the name of a metric", 3, OBJECT, True)],
                "maximize": FLAG,
                "strict": FLAG,
            },
        ),
        "fgd.per_example": (
            "per_example",
            {"optimizer": fgd.sgd(0.1)},
            {"optimizer": [(TypeError, "optimizer must be", None, 3, OBJECT, "adam")]},
        ),
        "fgd.evaluate": (
            "evaluate|apply",
            {"metric_fn": LOSS, "params": PARAMS, "data": DATA},
            {
                "metric_fn": FUNCTION,
                "data": ARRAYS,
                "batch_size": ints(1, NONE),
                "params": [
                    (TypeError, "expected an array of NumPy or JAX", "w", OBJECT),
                    (ValueError, "params of layers", None, 3),
                ],
            },
        ),
        "fgd.sweep": (
            "sweep",
            {"run": lambda a: a, "a": [1.0]},
            {
                "run": FUNCTION,
                "max_parallel": ints(1),
                "mesh": MESH,
                "a": [
                    (TypeError, "expected numbers", "a", WORDS, OBJECT, [OBJECT]),
                    (ValueError, "expected values along one axis", 1.0, X, None, [], {"b": 2.0}),
                    (ValueError, "holds seeds up to", [HUGE, 1]),
                    (ValueError, "unequal lengths", {"b": X, "c": X[:2]}),
                ],
            },
        ),
        "fgd.train_step": (
            "train_step",
            {"loss_fn": LOSS, "optimizer": fgd.sgd(0.1)},
            {
                "loss_fn": FUNCTION,
                "optimizer": [
                    (TypeError, "must be an optax.Grad", None, 0.1, "sgd", fgd.sgd, OBJECT)
                ],
            },
        ),
        "fgd.supervised": (
            "supervised",
            {"model": MODEL, "loss": fgd.losses.mse},
            {
                "model": [
                    (
                        TypeError,
                        "must be a function|expected an fgd Model",
                        None,
                        3,
                        "m",
                        X,
                        OBJECT,
                        (MODEL.init, MODEL.apply),
                    )
                ],
                "loss": [*FUNCTION, (TypeError, "must be a function", None)],
                "preprocess": FUNCTION,
                "metrics": [
                    (TypeError, "metrics must be a dict", 3, "m", [fgd.losses.mse], OBJECT),
                    (TypeError, "words for names", {1: fgd.losses.mse}),
                    (ValueError, "may not be named", {"loss": fgd.losses.mse}),
                    (TypeError, "must be a function", {"a": 3}),
                ],
                "compute_dtype": [
                    (TypeError, "must be a float dtype", "int8", int, "half a float", 3, OBJECT),
                    (TypeError, "jax_enable_x64", np.float64, "float64"),
                ],
            },
        ),
        "fgd.compilation_cache": ("compilation_cache", {}, {"folder": PATH}),
        "Step.init": (
            "step.init",
            {"params": PARAMS},
            {
                "params": FLOATS,
                "key": [*SEED, (TypeError, "must be a seed", None)],
                "model_state": [(TypeError, "no argument of that name", 3, X)],
            },
        ),
        "Step.__call__": (
            "step",
            {"state": STATE, "batch": DATA},
            {
                "state": STATES,
                "batch": [
                    *TREE,
                    (TypeError, "expected an array of NumPy or JAX", "rows", OBJECT, (X, OBJECT)),
                ],
            },
        ),
        "fgd.conv.max_pool": (
            "max_pool",
            pooled,
            {
                "x": POOLED,
                "window": [*WINDOW, (ValueError, "larger than x", 7, (1, HUGE))],
                "strides": WINDOW,
            },
        ),
        "fgd.conv.avg_pool": (
            "avg_pool",
            pooled,
            {
                "x": POOLED,
                "window": [*WINDOW, (ValueError, "larger than x", 7, (1, HUGE))],
                "strides": WINDOW,
            },
        ),
        "fgd.data.linear": (
            "linear",
            {"key": KEY, "n": 3},
            {
                "key": TYPED_KEY,
                "n": ints(1, NONE),
                "slope": FINITE,
                "intercept": FINITE,
                "noise": FINITE,
                "inputs": [*FUNCTION, (TypeError, "must be a function", None)],
            },
        ),
        "fgd.data.split": (
            "split",
            {"key": KEY, "data": DATA, "fraction": 0.5},
            {
                "key": TYPED_KEY,
                "data": ROWS,
                "fraction": [
                    (TypeError, "must be a number in", None, "0.5", True, OBJECT, X, 0.5j),
                    (ValueError, "a part without rows", 0, 1, 1.5, -0.5, NAN, INF, 1e-9, HUGE),
                ],
            },
        ),
        "fgd.data.shuffle": (
            "shuffle",
            {"key": KEY, "epoch": 0, "positions": np.arange(6), "n": 6},
            {
                "key": TYPED_KEY,
                "epoch": [
                    *NUMBERS[:1],
                    (TypeError, "expected integers", 1.5, True, NAN),
                    (ValueError, "expected a scalar", np.arange(2)),
                    (ValueError, r"beyond those|must be in \[0, 2147483648\)", -1, 2**31, HUGE),
                ],
                "positions": [
                    *NUMBERS[:1],
                    (TypeError, "expected integers", X, True),
                    (ValueError, r"beyond those|must be in \[0, 6\)", np.arange(7), -1, HUGE),
                ],
                "n": [
                    *ints(1, NONE)[:1],
                    (ValueError, "n must be in 1 … 2³¹ − 1", 0, 2**31, HUGE),
                    (ValueError, "at least 0", -1),
                ],
            },
        ),
        "fgd.data.normalize": (
            "normalize",
            {"x": np.zeros(3, np.uint8)},
            {
                "x": [
                    *NUMBERS,
                    (
                        TypeError,
                        "expected uint8 pixels",
                        3,
                        1.0,
                        X,
                        np.ones(3, bool),
                        np.ones(3, int),
                    ),
                ],
                "mean": FINITE,
                "std": [*FINITE, (ValueError, "std must be positive", 0, -1.0)],
            },
        ),
        "fgd.data.mnist": (
            "mnist",
            {"source": "files"},
            {
                "source": [
                    (ValueError, "source must be one of", None, 3, "the net", ["files"], OBJECT)
                ],
                "data_dir": [*PATH, (FileNotFoundError, "lacks", "/nowhere")],
            },
        ),
        "fgd.losses.mse": (
            "mse",
            {"pred": Y, "target": Y},
            {
                "pred": [*REALS, (ValueError, "expected equal shapes", Y[:, :1], 1.0, Y[:0])],
                "target": [*REALS, (ValueError, "expected equal shapes", Y[:, 0], 1.0, Y[None])],
                "weights": ROW_WEIGHTS,
                "reduction": REDUCTION,
            },
        ),
        "fgd.losses.cross_entropy": (
            "cross_entropy",
            classes,
            {
                "logits": LOGITS,
                "labels": LABELS,
                "label_smoothing": [*FINITE, (ValueError, r"must be in \[0, 1\]", -0.1, 1.5)],
                "weights": ROW_WEIGHTS,
                "reduction": REDUCTION,
            },
        ),
        "fgd.losses.accuracy": (
            "accuracy",
            classes,
            {"logits": LOGITS, "labels": LABELS, "weights": ROW_WEIGHTS, "reduction": REDUCTION},
        ),
        **{
            f"fgd.losses.{name}": (
                name,
                {"logits": X[:, 0], "targets": np.zeros(6, int)},
                {
                    "logits": BINARY_LOGITS,
                    "targets": TARGETS,
                    "weights": ROW_WEIGHTS,
                    "reduction": REDUCTION,
                },
            )
            for name in ("binary_cross_entropy", "binary_accuracy")
        },
        "fgd.models.linear": (
            "linear",
            {"n_in": 3, "n_out": 2},
            {"n_in": ints(1, NONE), "n_out": ints(1, NONE)},
        ),
        "fgd.models.mlp": (
            "mlp",
            {"sizes": [3, 2]},
            {
                "sizes": [*SIZES_, (ValueError, "at least two", [3])],
                "activation": [*FUNCTION, (TypeError, "must be a function", None)],
            },
        ),
        "fgd.models.cnn": (
            "cnn",
            cnn,
            {
                "image_shape": [
                    *SIZES_,
                    (ValueError, "at least 2 of them", [6]),
                    (ValueError, "expected image_shape", [6, 6, 1, 1]),
                ],
                "channels": SIZES_,
                "features": SIZES_,
                "kernel_size": [*SOME, (TypeError, "must be an int", None)],
                "strides": [*SOME, (TypeError, "must be an int", None)],
                "pool": [
                    *SOME,
                    (TypeError, "must be an int", None),
                    (ValueError, "nothing is left", 7, HUGE),
                ],
                "padding": [(ValueError, "padding must be", None, "same", 1, [], OBJECT)],
                "dropout": [
                    (
                        ValueError,
                        "must be a probability",
                        None,
                        True,
                        "0.5",
                        1,
                        -0.1,
                        NAN,
                        INF,
                        OBJECT,
                    )
                ],
                "activation": [*FUNCTION, (TypeError, "must be a function", None)],
            },
        ),
        "fgd.models.from_flax": (
            "from_flax",
            {"module": nn.Dense(2), "sample": X},
            {
                "module": [
                    (TypeError, "expected a linen module or", None, 3, "Dense", nn.Dense, OBJECT)
                ],
                "sample": [*NUMBERS[:1], (TypeError, "expected an array of", (X, "a"))],
            },
        ),
        "fgd.models.from_equinox": (
            "from_equinox",
            {"factory": lambda key: equinox.nn.Linear(3, 2, key=key)},
            {
                "factory": [
                    (TypeError, "expected a function key -> module", None, 3, EQUINOX, "Linear"),
                    (TypeError, "to make an equinox.Module", lambda key: 3, lambda key: (EQUINOX,)),
                ]
            },
        ),
        "fgd.ema": (
            "ema",
            {"optimizer": fgd.sgd(0.1), "decay": 0.9},
            {
                "optimizer": [(TypeError, "must be an optax.Grad", None, 3, "sgd", fgd.sgd)],
                "decay": [
                    (TypeError, "expected|must be", None, "a", 1j, True),
                    (ValueError, r"must be in \[0, 1\]|scalar|finite", -0.1, 1.5, NAN, np.ones(2)),
                ],
            },
        ),
        "fgd.averaged": (
            "averaged",
            {"state": STATE},
            {
                "state": [
                    (TypeError, "state", None, 3, PARAMS),
                    (ValueError, "keeps no average", STATE),
                ]
            },
        ),
        "fgd.summary": (
            "summary",
            {"model": MODEL},
            {"model": [(TypeError, "expected a Model, or a pytree", 3, "m", OBJECT, [X, "a"])]},
        ),
        "fgd.Patience": (
            "Patience",
            {"metric": "loss", "evaluations": 3},
            {
                "metric": [(TypeError, "must be a name", None, 3, OBJECT, b"loss")],
                "evaluations": ints(1, NONE),
                "maximize": FLAG,
            },
        ),
        "linear.apply": (
            "apply",
            {"params": LINEAR.init(0), "x": X},
            {"params": LAYERS[:1], "x": [*NUMBERS, *SHAPES]},
        ),
        "mlp.apply": (
            "apply",
            {"params": PARAMS, "x": X},
            {
                "params": LAYERS,
                "x": [
                    *NUMBERS,
                    *SHAPES,
                    (
                        TypeError,
                        "expected a float",
                        X.astype(int),
                        X.astype(bool),
                        X.astype(complex),
                    ),
                ],
            },
        ),
        "mlp.init": ("mlp.init", {"key": 0}, {"key": [*SEED, (TypeError, "must be a seed", None)]}),
        "cnn.init": ("cnn.init", {"key": 0}, {"key": SEED}),
        "cnn.apply": (
            "apply",
            {"params": CNN.init(0), "x": IMAGES},
            {
                "params": LAYERS,
                "x": [
                    *NUMBERS,
                    (ValueError, "has shape", X, 1.0, IMAGES[:, 1:]),
                    (TypeError, "expected a float", IMAGES.astype(int)),
                ],
                "key": SEED,
            },
        ),
        "from_flax.init": ("from_flax.init", {"key": 0}, {"key": SEED}),
        "fgd.interop.save": (
            "interop.save",
            {"path": "a", "tree": PARAMS},
            {
                "path": PATH,
                "tree": [(TypeError, "expected an array", "w", OBJECT, {"a": WORDS}, [OBJECT])],
                "overwrite": FLAG,
            },
        ),
        "fgd.interop.load": (
            "interop.load",
            {"path": "w.safetensors"},
            {
                "path": [
                    *PATH,
                    (FileNotFoundError, "nowhere", "nowhere"),
                    (ValueError, "is no file", "."),
                ],
                "like": [
                    (ValueError, "does not fit like: left over b, w", (), {}),
                    (ValueError, "does not fit like", 3, X),
                    (TypeError, "like is .*, expected an array", "w", OBJECT),
                ],
            },
        ),
        "fgd.interop.from_torch": (
            "from_torch",
            {"state_dict": WEIGHTS, "like": LINEAR.init(0)},
            {
                "state_dict": [
                    (TypeError, "state_dict must be a PyTorch model", None, 3, "w", [X], OBJECT),
                    (ValueError, "does not fit", {}),
                ],
                "like": [
                    (TypeError, "expected parameters by name", 3, "w", X, OBJECT),
                    (TypeError, "expected parameters by name", None, {}),
                    (ValueError, "does not fit", PARAMS * 2),
                ],
                "names": NAMES,
                "flattened": FLATTENED,
            },
        ),
        "fgd.interop.to_torch": (
            "to_torch",
            {"params": LINEAR.init(0)},
            {
                "params": [(TypeError, "expected parameters by name", 3, "w", X, OBJECT)],
                "names": NAMES,
                "flattened": FLATTENED,
                "like": [(TypeError, "like must be a PyTorch model", 3, "w", [X], OBJECT)],
            },
        ),
        "fgd.export.save": (
            "export.save",
            {"path": "a", "apply": MODEL.apply, "params": PARAMS, "sample": X},
            {
                "path": [*PATH, (TypeError, "the path comes first", MODEL.apply)],
                "apply": [*FUNCTION, (TypeError, "must be a function", None)],
                "params": [(TypeError, "expected an array", "w", OBJECT, {"a": WORDS}, [OBJECT])],
                "sample": ROWS,
                "any_batch": FLAG,
                "overwrite": FLAG,
            },
        ),
        "fgd.export.load": (
            "export.load",
            {},
            {"path": [*PATH, (ValueError, "is no file of", "w.safetensors")]},
        ),
        "Artifact.__call__": (
            "artifact",
            {},
            {
                "inputs": [
                    (TypeError, "expected an array of NumPy or JAX", "x", OBJECT),
                    (TypeError, "expected numbers", WORDS),
                ]
            },
        ),
        "fgd.parallel.init": (
            "parallel.init",
            {},
            {
                "coordinator_address": [
                    (TypeError, "must be a str", 3, ("a", 1), OBJECT),
                    (ValueError, "num_processes and process_id missing", "localhost:1"),
                ],
                "num_processes": ints(1),
                "process_id": ints(0),
                "initialization_timeout": ints(1, NONE),
                "heartbeat_timeout": ints(1, NONE),
            },
        ),
        "fgd.testing.check_gradients": (
            "check_gradients",
            {"loss": lambda p, b: p * jnp.sum(b), "params": 1.0, "batch": X},
            {
                "loss": [*FUNCTION, (TypeError, "must be a function", None)],
                "params": FLOATS,
                "analytic": FUNCTION,
            },
        ),
        "fgd.plots.contours": (
            "contours",
            {"function": jnp.sum, "xlim": (0, 1), "ylim": (0, 1)},
            {
                "function": FUNCTION,
                "xlim": PAIR,
                "ylim": PAIR,
                "levels": ints(1, NONE),
                "ax": PICTURE,
            },
        ),
        "fgd.plots.digits": (
            "digits",
            {
                "images": np.ones([2, 5, 5]),
                "predictions": np.ones(2, int),
                "labels": np.ones(2, int),
            },
            {
                "images": [
                    *REALS,
                    (ValueError, "expected .* not empty", X, 1.0, np.ones([0, 5, 5])),
                ],
                "predictions": [*LINE, (ValueError, "as many of each", np.ones(3, int))],
                "labels": [*LINE, (ValueError, "as many of each", np.ones(1, int))],
                "columns": ints(1, NONE),
                "ax": PICTURE,
            },
        ),
        "fgd.plots.fitted_line": (
            "fitted_line",
            {"x": np.arange(3.0), "y": None, "predict": lambda x: x},
            {
                "x": [*REALS, (ValueError, "expected", 1.0, np.ones(0), np.ones([3, 2]))],
                "y": [*REALS[1:], (ValueError, "one number a row", np.ones(2), np.ones([3, 2]))],
                "predict": FUNCTION,
                "ax": PICTURE,
            },
        ),
        "fgd.plots.loss_curve": (
            "loss_curve",
            {"losses": np.ones(3)},
            {"losses": LINE, "every": ints(1, NONE), "ax": PICTURE},
        ),
        "fgd.plots.history": (
            "history",
            {"history": {"loss": np.ones(3)}},
            {
                "history": [
                    (TypeError, "expected a run's history", None, 3, X, [X], OBJECT),
                    (ValueError, "there is no 'loss', but", {}, {"error": X}),
                    (TypeError, "expected", {"loss": WORDS}, {"loss": X, "evaluate": 3}),
                    (ValueError, "has shape", {"loss": X}, {"loss": X[:0, 0]}, {"loss": 1.0}),
                ],
                "metric": [
                    (TypeError, "must be a name", None, 3, OBJECT),
                    (ValueError, "there is no 'score', but 'loss'", "score"),
                ],
                "maximize": FLAG,
                "every": ints(1, NONE),
                "ax": PICTURE,
            },
        ),
        "fgd.plots.paths": (
            "paths",
            {"positions": {"a": np.ones([3, 2])}},
            {
                "positions": [
                    (TypeError, "must be a dict", None, 3, "a", X, [X], {}),
                    (TypeError, "expected an array of", {"a": "b"}, {"a": WORDS}),
                    (
                        ValueError,
                        "expected",
                        {"a": np.ones([3, 4])},
                        {"a": np.ones(2)},
                        {"a": np.ones([0, 2])},
                    ),
                ],
                "ax": PICTURE,
            },
        ),
        "fgd.plots.sweep_curves": (
            "sweep_curves",
            curves,
            {
                "losses": [
                    *REALS,
                    (ValueError, "expected|axes of", np.ones(3), 1.0, np.ones([3, 3])),
                ],
                "every": ints(1, NONE),
                "ax": PICTURE,
                "a": AXIS,
            },
        ),
        "fgd.plots.sweep_heatmap": (
            "sweep_heatmap",
            heat,
            {
                "values": [
                    *REALS,
                    (ValueError, "expected|axes of", np.ones(3), 1.0, np.ones([3, 3])),
                ],
                "ax": PICTURE,
                "a": AXIS,
                "b": AXIS,
            },
        ),
    }


METHODS = {
    "Step.init": STEP.init,
    "Step.__call__": STEP.__call__,
    "fgd.Checkpoints": fgd.Checkpoints,
    "linear.apply": LINEAR.apply,
    "mlp.init": MODEL.init,
    "mlp.apply": MODEL.apply,
    "cnn.init": CNN.init,
    "cnn.apply": CNN.apply,
    "fgd.Patience": fgd.Patience,
    "from_flax.init": FLAX.init,
    "Artifact.__call__": fgd.export.Artifact.__call__,
}
UNCHECKED = {  # function or function.argument: why no value of it is refused
    "fgd.conv.conv_general_dilated": "lax's arguments, and lax's errors",
    "fgd.testing.check_gradients.batch": "what the loss takes",
    "fgd.train.progress": "whatever is true shows a bar",
    "linear.apply.key": "not used",
    "mlp.apply.key": "not used",
}
for name in ("fitted_line", "loss_curve", "sweep_heatmap"):
    UNCHECKED[f"fgd.plots.{name}.label"] = "any text"
TABLE = table()


def test_every_argument_is_in_the_table():
    """Or in a short list of those that refuse nothing; and the table has no others."""
    functions = {name: f for name, f in FUNCTIONS.items() if inspect.isfunction(f)} | METHODS
    arguments, keywords = {}, inspect.Parameter.VAR_KEYWORD
    for name, function in functions.items():
        parameters = inspect.signature(function).parameters.values()
        arguments[name] = {p.name for p in parameters if p.kind is not keywords} - {"self"}
    given = {name: {a for a, rows in row[2].items() if rows} for name, row in TABLE.items()}
    for name in arguments:
        known = {a for a in arguments[name] if f"{name}.{a}" in UNCHECKED}
        missing = arguments[name] - given.get(name, set()) - known
        assert not missing or name in UNCHECKED, f"{name}: no row for {missing}"
        more = given.get(name, set()) - arguments[name]
        assert all(len(a) == 1 for a in more), f"{name}: no argument {more}"  # axes are a and b
    assert not TABLE.keys() - arguments.keys()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With files of fgd's."""
    folder = tmp_path_factory.mktemp("files")
    fgd.interop.save(folder / "w.safetensors", LINEAR.init(0))
    fgd.export.save(folder / "a.fgd", MODEL.apply, PARAMS, X)
    return folder


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.filterwarnings("ignore:.*(invalid value|overflow)")
def test_it_is_refused_in_words(name, folder, monkeypatch):
    """An error of the documented kind, whose message begins with the function's name."""
    monkeypatch.chdir(folder)
    if name == "fgd.interop.to_torch":
        pytest.importorskip("torch")
    function = (FUNCTIONS | METHODS)[name]
    if name == "Artifact.__call__":
        artifact = fgd.export.load("a.fgd")
        function = lambda inputs: artifact(inputs)  # noqa: E731
    if name == "fgd.sweep":
        function = lambda run, **others: fgd.sweep(run, **others)  # noqa: E731
    begins, good, arguments = TABLE[name]
    wrong = []
    for argument, refusals in arguments.items():
        for error, words, *values in refusals:
            for value in values:
                alone = (
                    {"num_steps": None} if argument == "num_epochs" and value is not None else {}
                )
                kind, message = answer(function, {**good, **alone, argument: value})
                begun = re.match(rf"({begins})(:| needs)|\[Errno", message)
                right = kind is not None and issubclass(kind, error) and begun
                if not (right and re.search(words, message) and len(message) < 600):
                    said = f"{kind and kind.__name__}: {message[:200]!r} ({words})"
                    wrong.append(f"{argument}={repr(value)[:60]}: {said}")
    assert not wrong, f"{len(wrong)} of {name}:\n" + "\n".join(wrong)


def answer(function, arguments):
    try:
        result = function(**arguments)
    except Exception as error:
        return type(error), str(error)
    return None, f"no error, but {str(result)[:100]}"
