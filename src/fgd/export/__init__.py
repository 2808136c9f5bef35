"""Models and training steps as files that JAX alone can run."""

from fgd.export._artifact import Artifact as Artifact, load as load, save as save
