"""Training."""

from pyro_vae.training.callbacks import CSV, Callback, JSONLines, Progress, ProgressBar, TensorBoard
from pyro_vae.training.diagnosis import Diagnosis
from pyro_vae.training.early_stopping import EarlyStopping
from pyro_vae.training.fit import fit
from pyro_vae.training.history import DivergedError, History, NotSavedError
from pyro_vae.training.load import load

__all__ = [
    "CSV",
    "Callback",
    "Diagnosis",
    "DivergedError",
    "EarlyStopping",
    "History",
    "JSONLines",
    "NotSavedError",
    "Progress",
    "ProgressBar",
    "TensorBoard",
    "fit",
    "load",
]
