"""The jobs in Lightning, as its documentation writes them."""

import lightning as L  # noqa: N812
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset


def early_stopping(train, valid):
    class Net(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 3))

        def training_step(self, batch, batch_idx):
            x, y = batch
            return F.cross_entropy(self.model(x), y)

        def validation_step(self, batch, batch_idx):
            x, y = batch
            self.log("val_loss", F.cross_entropy(self.model(x), y))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    train_loader = DataLoader(TensorDataset(*train), batch_size=32, shuffle=True)
    valid_loader = DataLoader(TensorDataset(*valid), batch_size=1000)
    stop = EarlyStopping("val_loss", patience=10)
    best = ModelCheckpoint(monitor="val_loss")
    trainer = L.Trainer(max_epochs=200, callbacks=[stop, best])
    trainer.fit(Net(), train_loader, valid_loader)
    net = Net.load_from_checkpoint(best.best_model_path)
    return net.model(valid[0])


def validation(train, valid):
    class Net(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 3))

        def training_step(self, batch, batch_idx):
            x, y = batch
            return F.cross_entropy(self.model(x), y)

        def validation_step(self, batch, batch_idx):
            x, y = batch
            self.log("val_loss", F.cross_entropy(self.model(x), y))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    train_loader = DataLoader(TensorDataset(*train), batch_size=32, shuffle=True)
    valid_loader = DataLoader(TensorDataset(*valid), batch_size=1000)
    net = Net()
    trainer = L.Trainer(max_epochs=20)
    trainer.fit(net, train_loader, valid_loader)
    return net.model(valid[0])


def plot(train, valid):
    class Net(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 3))

        def training_step(self, batch, batch_idx):
            x, y = batch
            loss = F.cross_entropy(self.model(x), y)
            self.log("train_loss", loss, on_step=False, on_epoch=True)
            return loss

        def validation_step(self, batch, batch_idx):
            x, y = batch
            self.log("val_loss", F.cross_entropy(self.model(x), y))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    train_loader = DataLoader(TensorDataset(*train), batch_size=32, shuffle=True)
    valid_loader = DataLoader(TensorDataset(*valid), batch_size=1000)
    net = Net()
    logger = CSVLogger("logs")
    trainer = L.Trainer(max_epochs=20, logger=logger)
    trainer.fit(net, train_loader, valid_loader)
    metrics = pd.read_csv(f"{logger.log_dir}/metrics.csv")
    metrics.groupby("epoch")[["train_loss", "val_loss"]].mean().plot()
    plt.savefig("history.png")
    return net.model(valid[0])


def checkpoints(train, valid):
    class Net(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 3))

        def training_step(self, batch, batch_idx):
            x, y = batch
            return F.cross_entropy(self.model(x), y)

        def validation_step(self, batch, batch_idx):
            x, y = batch
            self.log("val_loss", F.cross_entropy(self.model(x), y))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    train_loader = DataLoader(TensorDataset(*train), batch_size=32, shuffle=True)
    valid_loader = DataLoader(TensorDataset(*valid), batch_size=1000)
    periodic = ModelCheckpoint("kept", every_n_train_steps=500, save_last=True)
    best = ModelCheckpoint("kept", filename="best", monitor="val_loss")
    trainer = L.Trainer(max_epochs=60, callbacks=[periodic, best])
    trainer.fit(Net(), train_loader, valid_loader, ckpt_path="last")
    net = Net.load_from_checkpoint(best.best_model_path)
    return net.model(valid[0])


def weights(train, valid):
    x, y, row_weights = train
    class_weights = torch.as_tensor(len(y) / (3 * np.bincount(y)), dtype=torch.float32)

    class Net(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 3))

        def training_step(self, batch, batch_idx):
            x, y, w = batch
            losses = F.cross_entropy(self.model(x), y, reduction="none")
            return (w * losses).sum() / w.sum()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    dataset = TensorDataset(x, y, row_weights * class_weights[y])
    loader = DataLoader(dataset, batch_size=32, shuffle=True)
    net = Net()
    trainer = L.Trainer(max_epochs=20)
    trainer.fit(net, loader)
    return net.model(valid[0])


def one_logit(train, valid):
    class Net(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1))

        def training_step(self, batch, batch_idx):
            x, y = batch
            logits = self.model(x)
            self.log("accuracy", ((logits > 0) == (y == 1)).float().mean())
            return F.binary_cross_entropy_with_logits(logits, y)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    loader = DataLoader(TensorDataset(*train), batch_size=32, shuffle=True)
    net = Net()
    trainer = L.Trainer(max_epochs=20)
    trainer.fit(net, loader)
    return net.model(valid[0])


def sequences(train, valid):
    class Net(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(30, 16)
            self.gru = nn.GRU(16, 64, batch_first=True)
            self.out = nn.Linear(64, 30)

        def forward(self, x):
            return self.out(self.gru(self.embed(x))[0])

        def training_step(self, batch, batch_idx):
            x, y = batch
            return F.cross_entropy(self(x).flatten(0, 1), y.flatten())

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=5e-3)

    loader = DataLoader(TensorDataset(*train), batch_size=32, shuffle=True)
    net = Net()
    trainer = L.Trainer(max_epochs=10)
    trainer.fit(net, loader)
    return net(valid[0])


def average(train, valid):
    class Net(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 3))

        def training_step(self, batch, batch_idx):
            x, y = batch
            return F.cross_entropy(self.model(x), y)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    loader = DataLoader(TensorDataset(*train), batch_size=32, shuffle=True)
    net = Net()
    trainer = L.Trainer(max_epochs=20, callbacks=[EMAWeightAveraging(decay=0.99)])
    trainer.fit(net, loader)
    return net.model(valid[0])


def bfloat16(train, valid):
    class Net(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 3))

        def training_step(self, batch, batch_idx):
            x, y = batch
            return F.cross_entropy(self.model(x), y)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    loader = DataLoader(TensorDataset(*train), batch_size=32, shuffle=True)
    net = Net()
    trainer = L.Trainer(max_epochs=20, precision="bf16-mixed")
    trainer.fit(net, loader)
    return net.model(valid[0])


def autoencoder(x, valid):
    class Net(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 784))

        def training_step(self, batch, batch_idx):
            (x,) = batch
            return F.mse_loss(self.model(x), x)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    loader = DataLoader(TensorDataset(x), batch_size=100, shuffle=True)
    net = Net()
    trainer = L.Trainer(max_epochs=10)
    trainer.fit(net, loader)
    return net.model(valid)
