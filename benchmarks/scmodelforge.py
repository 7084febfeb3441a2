"""How long a step of pre-training takes, and how much memory, beside scModelForge's layers on the same minibatches.

    python benchmarks/scmodelforge.py [--peer FOLDER] [--what encoder autoencoder] [--precision fp32 bf16] [--threads 2]
    python benchmarks/scmodelforge.py --seed-configuration

560 of scanpy's 700 bundled PBMC, counts recovered from the logarithms, as rank tokens of at most 2,048 (the encoder) and as
numbers (the autoencoder).  A step is a minibatch of our loader, forward, backward, clipping and AdamW.  The peer has
scModelForge's layers as its documentation and specification describe them: torch's ``nn.TransformerEncoder``, logits for
all tokens, and for the autoencoder a second pass of the encoder whose result nobody reads.  ``--peer`` takes the folder of
its source (that holds the package ``scmodelforge``) and uses its own model classes instead.

Each side runs in a process of its own, which tells its largest memory; times are seconds of the wall and of the CPUs.  On a
machine that others use, compare the latter.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

SMALL = {"dim": 128, "layers": 4, "heads": 4}
SEED = {"dim": 512, "layers": 12, "heads": 8}
FAMILIES = {"encoder": "scmodelforge", "autoencoder": "scmodelforge_autoencoder"}


def cells() -> Any:
    """Counts of 560 cells."""
    import scanpy as sc
    import scipy.sparse as sp

    table = sc.datasets.pbmc68k_reduced().raw.to_adata()[:560].copy()
    X = sp.csr_matrix(table.X).astype(np.float64)
    X.data = np.expm1(X.data)
    # One count is the least that a cell shows.
    least = np.array([row.data.min() if row.nnz else 1.0 for row in X])
    X = sp.csr_matrix(X.multiply(1 / least[:, None]))
    X.data = np.rint(X.data)
    table.X = X.astype(np.float32)
    return table


def ours(what: str, sizes: dict[str, int], batch_size: int) -> tuple[Any, Any, tuple[Any, ...], Any]:
    """Model, loader, loss terms and what is hidden."""
    from scgpt_tools.config import from_dict
    from scgpt_tools.data.module import CellDataModule, CellTable
    from scgpt_tools.data.rows import RowSource
    from scgpt_tools.models import FAMILIES as KNOWN
    from scgpt_tools.models import CellModel
    from scgpt_tools.objectives import check_objectives
    from scgpt_tools.tokens import FeatureTable
    from scgpt_tools.tokens.corruptions import Corruption
    from scgpt_tools.vocabulary import Vocabulary

    table, family = cells(), KNOWN[FAMILIES[what]]
    vocabulary = Vocabulary.from_genes(table.var_names, family.specials)
    torch.manual_seed(0)
    model = CellModel(family(vocabulary, **sizes), vocabulary)
    task = next(iter(family.pretraining.values()))
    hidden = from_dict(Corruption, task.corruption).of(model.tokenizer)
    source = RowSource(table)
    data = CellDataModule(
        [CellTable(source, FeatureTable.from_var(source.var, vocabulary))], model.tokenizer, corruption=hidden
    )
    return model, data.loader("train", batch_size=batch_size), check_objectives(task.objectives), vocabulary


class Peer(nn.Module):
    """scModelForge's encoder or masked autoencoder."""

    def __init__(self, what: str, n_tokens: int, *, dim: int, layers: int, heads: int, length: int = 2048) -> None:
        super().__init__()
        self.what = what
        self.genes = nn.Embedding(n_tokens, dim, padding_idx=0)
        self.positions, self.values = nn.Embedding(length, dim), nn.Linear(1, dim)
        self.norm, self.dropout = nn.LayerNorm(dim, eps=1e-12), nn.Dropout(0.1)
        self.encoder = self._stack(dim, layers, heads)
        if what == "encoder":
            self.dense, self.head_norm = nn.Linear(dim, dim), nn.LayerNorm(dim, eps=1e-12)
            self.out = nn.Linear(dim, n_tokens)
        else:
            width = dim // 2
            self.narrow, self.missing = nn.Linear(dim, width), nn.Parameter(torch.zeros(width))
            self.decoder_positions, self.decoder = nn.Embedding(length, width), self._stack(width, 4, heads)
            self.dense, self.out = nn.Linear(width, width), nn.Linear(width, 1)

    def _stack(self, dim: int, layers: int, heads: int) -> nn.TransformerEncoder:
        layer = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def embedded(self, genes: torch.Tensor, values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Tokens as vectors."""
        vectors = self.genes(genes) + self.positions(places) + self.values(values.unsqueeze(-1))
        return self.dropout(self.norm(vectors))

    def loss(self, batch: Any) -> torch.Tensor:
        """Of a minibatch whose hidden tokens are marked."""
        places = torch.arange(batch.mask.shape[1]).expand(batch.mask.shape)
        if self.what == "encoder":
            tokens = self.encoder(self.embedded(batch.genes, batch.values, places), src_key_padding_mask=~batch.mask)
            logits = self.out(self.head_norm(F.gelu(self.dense(tokens))))
            labels = batch.target_genes.masked_fill(~batch.hidden, -100)
            return F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        seen = batch.mask & ~batch.hidden
        order = torch.argsort(~seen, dim=1, stable=True)[:, : int(seen.sum(1).max())]
        kept = seen.gather(1, order)
        vectors = self.embedded(batch.genes, batch.target, places)
        short = vectors.gather(1, order.unsqueeze(-1).expand(-1, -1, vectors.shape[-1]))
        encoded = self.narrow(self.encoder(short, src_key_padding_mask=~kept))
        full = self.missing.to(encoded.dtype).expand(*batch.mask.shape, -1).clone()
        rows = torch.arange(len(full)).unsqueeze(1).expand_as(order)
        full[rows[kept], order[kept]] = encoded[kept]
        decoded = self.decoder(full + self.decoder_positions(places), src_key_padding_mask=~batch.mask)
        found = self.out(F.gelu(self.dense(decoded))).squeeze(-1)
        # The embedding, which takes another pass that is tracked and read by nobody.
        self.unread = self.encoder(self.embedded(batch.genes, batch.target, places), src_key_padding_mask=~batch.mask)
        return F.mse_loss(found[batch.hidden].float(), batch.target[batch.hidden])


def original(folder: Path, what: str, n_tokens: int, sizes: dict[str, int]) -> nn.Module:
    """scModelForge's own class, with a loss of our minibatches."""
    sys.path.insert(0, str(folder))
    # What reads its configuration files, which nothing here does.
    sys.modules.setdefault("omegaconf", ModuleType("omegaconf")).OmegaConf = object
    from scmodelforge.models.masked_autoencoder import MaskedAutoencoder
    from scmodelforge.models.transformer_encoder import TransformerEncoder

    if what == "encoder":
        model: Any = TransformerEncoder(n_tokens, sizes["dim"], sizes["layers"], sizes["heads"])
    else:
        model = MaskedAutoencoder(
            n_tokens, sizes["dim"], encoder_layers=sizes["layers"], encoder_heads=sizes["heads"], pooling="cls"
        )

    def loss(batch: Any) -> torch.Tensor:
        values = batch.values if what == "encoder" else batch.target
        labels = (batch.target_genes if what == "encoder" else batch.genes).masked_fill(~batch.hidden, -100)
        extra = {} if what == "encoder" else {"masked_positions": batch.hidden}
        return model(batch.genes, batch.mask.long(), values=values, labels=labels, **extra).loss

    model.loss = loss
    return model


def steps(side: str, arguments: argparse.Namespace) -> None:
    """Train a few steps and print what they took."""
    torch.set_num_threads(arguments.threads)
    sizes = SEED if arguments.seed_configuration else SMALL
    model, loader, terms, vocabulary = ours(arguments.what[0], sizes, arguments.batch_size)
    from scgpt_tools._threads import patient_products, training_threads
    from scgpt_tools.train.module import run_views
    from scgpt_tools.train.optim import OptimizerConfig, make_optimizer

    arranged = ExitStack()
    if side == "ours" and arguments.as_fit:
        arranged.enter_context(patient_products())
        arranged.enter_context(training_threads())
    if side == "ours":
        optimizer = make_optimizer(model, OptimizerConfig(lr=1e-4, weight_decay=0.01))

        def loss(batch: Any) -> torch.Tensor:
            views = run_views(model, batch, terms)
            return sum(term(views, batch) for term in terms)
    else:
        model = (
            Peer(arguments.what[0], len(vocabulary), **sizes)
            if arguments.peer is None
            else original(arguments.peer, arguments.what[0], len(vocabulary), sizes)
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
        loss = model.loss
    model.train()
    walls, cpus, losses = [], [], []
    batches = iter(loader)
    for _ in range(arguments.steps + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.precision[0] == "bf16"):
            value = loss(batch)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(value))
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    arranged.close()
    print(
        json.dumps(
            {
                "wall": arguments.batch_size / median(walls[1:]),
                "cpu": arguments.batch_size / median(cpus[1:]),
                "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                "loss": losses[-1],
                "tokens": float(batch.mask.sum(1).float().mean()),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="folder that holds the package scmodelforge")
    parser.add_argument("--what", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--as-fit", action="store_true", help="ours in the threads that `train.fit` arranges")
    parser.add_argument(
        "--seed-configuration", action="store_true", help="512 x 12, 64 cells, bf16, two steps of ours alone"
    )
    parser.add_argument("--side", choices=["ours", "peer"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        steps(arguments.side, arguments)
        return
    sides = ["ours"] if arguments.seed_configuration else ["ours", "peer"]
    if arguments.seed_configuration:
        arguments = SimpleNamespace(
            **vars(arguments) | {"batch_size": 64, "steps": 2, "rounds": 1, "precision": ["bf16"]}
        )
        arguments.what = ["encoder"]
    for what in arguments.what:
        for precision in arguments.precision:
            found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
            for _ in range(arguments.rounds):
                for side in sides:
                    words = ["--side", side, "--what", what, "--precision", precision]
                    words += [
                        f"--{name}={getattr(arguments, name.replace('-', '_'))}"
                        for name in ("batch-size", "steps", "threads")
                    ]
                    words += ["--seed-configuration"] if arguments.seed_configuration else []
                    words += ["--as-fit"] if arguments.as_fit else []
                    words += [] if arguments.peer is None else ["--peer", str(arguments.peer)]
                    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True)
                    if done.returncode:
                        print(f"{what}, {precision}, {side} does not run: {done.stderr.splitlines()[-1]}")
                        continue
                    found[side].append(json.loads(done.stdout.splitlines()[-1]))
            found = {side: runs for side, runs in found.items() if runs}
            best = {side: {key: median(run[key] for run in runs) for key in runs[0]} for side, runs in found.items()}
            for side, run in best.items():
                print(
                    f"{what}, {precision}, {side}: {run['wall']:.1f} cells/s, {run['cpu']:.1f} per CPU second, "
                    f"{run['memory']:.2f} GB, loss {run['loss']:.3f}, {run['tokens']:.0f} tokens a cell"
                )
            if len(best) == 2:
                a, b = best["ours"], best["peer"]
                print(
                    f"{what}, {precision}: {a['wall'] / b['wall']:.1f} times as fast by the wall, {a['cpu'] / b['cpu']:.1f} by "
                    f"CPU seconds, {a['memory'] / b['memory']:.0%} of the memory"
                )


if __name__ == "__main__":
    main()
