"""Data: what to train on, and the order in which a run sees it."""

from fgd.data._mnist import MNIST as MNIST, mnist as mnist
from fgd.data._shuffle import shuffle as shuffle
from fgd.data._synthetic import linear as linear, normalize as normalize, split as split
