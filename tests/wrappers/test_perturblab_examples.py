"""What PerturbLab's page on its wrapper shows, example by example, with our import in the place of theirs."""

from __future__ import annotations

import numpy as np
import pytest
import scanpy as sc
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

import scgpt_tools as sct
from scgpt_tools import PerturbationData, scGPTConfig, scGPTModel, scGPTPerturbationModel


def test_configuration():
    config = scGPTConfig(ntoken=60697, d_model=512, nhead=8, nlayers=12, dropout=0.2, max_seq_len=None)
    assert config.d_hid == 512
    plain = scGPTConfig()
    expected = {
        "ntoken": None, "d_model": 512, "nhead": 8, "nlayers": 12, "dropout": 0.2, "max_seq_len": None,
        "use_fast_transformer": False, "do_mvc": False, "do_dab": False, "batch_label_key": "batch", "dab_weight": 1.0,
    }  # fmt: skip
    assert {name: getattr(plain, name) for name in expected} == expected


@pytest.mark.parametrize("name", ["scgpt-human", "scgpt-brain", "scgpt-blood"])
def test_loading_by_name(hub, adata, pretrained, name):
    model = scGPTModel.from_pretrained(name, device="cpu")
    assert model.vocab == pretrained.vocabulary
    assert not model.model.training
    sct.tl.embed(adata, pretrained)
    np.testing.assert_allclose(model.predict_embeddings(adata), adata.obsm["X_scGPT"], atol=1e-6)


def test_loading_from_a_folder(folder, pretrained):
    assert scGPTModel.from_pretrained(str(folder)).vocab == pretrained.vocabulary


def test_loading_with_custom_parameters(hub, tmp_path, pretrained):
    my_custom_genes = ["G1", "G2", "NEW1"]
    model = scGPTModel.from_pretrained(
        "scgpt-human", device="cuda", gene_list=my_custom_genes, revision="v1.0", cache_dir=tmp_path / "other"
    )
    assert model.vocab.tokens == (*pretrained.vocabulary.tokens, "NEW1")
    assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert (tmp_path / "other" / "models--perturblab--scgpt-human").is_dir()


def test_training(folder, adata, tmp_path):
    model = scGPTModel.from_pretrained(folder)
    dataset = PerturbationData(adata)
    history = model.train_model(
        dataset=dataset,
        epochs=2,
        batch_size=32,
        lr=1e-4,
        mask_ratio=0.4,
        use_amp=True,
        grad_clip=1.0,
        log_interval=100,
        save_dir=tmp_path / "ckpts",
        MVC=True,
        ECS=False,
        scheduler_gamma=0.99,
    )
    assert {name: len(values) for name, values in history.items()} == {
        "train_loss": 2, "valid_loss": 2, "epoch_times": 2,
    }  # fmt: skip
    assert history["train_loss"][1] < history["train_loss"][0]
    assert sorted(path.name for path in (tmp_path / "ckpts").iterdir()) == ["best", "epoch_1", "epoch_2", "run"]


def test_cell_embeddings_and_what_follows(folder, adata):
    model = scGPTModel.from_pretrained(folder)
    dataset = PerturbationData(adata)
    model.eval()
    cell_embs = model.predict_embeddings(dataset, batch_size=64, embedding_type="cell")
    adata.obsm["X_scGPT"] = cell_embs
    sc.pp.neighbors(adata, use_rep="X_scGPT")
    assert adata.obsp["connectivities"].shape == (adata.n_obs, adata.n_obs)


def test_gene_embeddings(folder, dataset):
    model = scGPTModel.from_pretrained(folder)
    gene_embs = model.predict_embeddings(dataset, embedding_type="gene")
    assert gene_embs.shape == (dataset.adata.n_vars, model.config.d_model)


def test_perturbation_prediction_from_a_folder(folder, dataset, tmp_path):
    scGPTPerturbationModel.from_pretrained(folder).save(tmp_path / "finetuned_model")
    pert_model = scGPTPerturbationModel.from_pretrained(str(tmp_path / "finetuned_model"))
    predictions = pert_model.predict_perturbation(dataset, batch_size=32, return_numpy=True)
    assert predictions.shape == dataset.adata.shape
    assert np.isfinite(predictions).all()


def test_forward_pass(folder, dataset):
    model = scGPTModel.from_pretrained(folder)
    dataloaders = model.prepare_dataloader(dataset, batch_size=32, mask_ratio=0.4, return_split="train")
    model.train()
    visited = 0
    for batch in dataloaders:
        output_dict = model.forward(batch, CLS=True, MVC=True, ECS=False)
        losses = model.compute_loss(batch, output_dict=output_dict, CLS=True, MVC=True, mask_value=-1)
        total_loss = losses["loss"]
        total_loss.backward()
        assert output_dict["cls_output"].shape == (len(batch["src"]), 1)
        visited += len(batch["src"])
    assert visited == (dataset.adata.obs["split"] == "train").sum()
    assert any(parameter.grad is not None for parameter in model.model.parameters())


def test_saving(folder, tmp_path):
    scGPTModel.from_pretrained(folder).save(tmp_path / "my_model")
    assert sorted(path.name for path in (tmp_path / "my_model").iterdir()) == ["args.json", "model.pt", "vocab.json"]


def test_original_checkpoints_load_directly_and_without_vocabulary_not_at_all(folder):
    """PerturbLab calls ``vocab.json`` optional and takes another vocabulary in its place, which scrambles the genes."""
    assert {path.name for path in folder.iterdir()} == {"args.json", "best_model.pt", "vocab.json"}
    scGPTModel.from_pretrained(folder)
    (folder / "vocab.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"vocab\.json"):
        scGPTModel.from_pretrained(folder)


def test_example_1_cell_types(hub):
    adata = sct.datasets.pbmc_demo()[:40].copy()
    dataset = PerturbationData(adata)
    model = scGPTModel.from_pretrained("scgpt-demo")
    embeddings = model.predict_embeddings(dataset, embedding_type="cell")
    adata.obsm["X_scGPT"] = embeddings
    sc.pp.neighbors(adata, use_rep="X_scGPT", n_neighbors=5)
    assert embeddings.shape == (40, 64)


def test_example_2_perturbation(hub, adata, tmp_path):
    del adata.obs["split"]
    base_model = scGPTModel.from_pretrained("scgpt-human")
    config = base_model.config
    pert_model = scGPTPerturbationModel(config, device="cuda")
    found = pert_model.model.load_state_dict(base_model.model.state_dict(), strict=False)
    assert not any("encoder.blocks" in name or "embedder.genes" in name for name in found.missing_keys)
    assert torch.equal(
        pert_model.cell_model.embedder.genes.table.weight.cpu(), base_model.cell_model.embedder.genes.table.weight.cpu()
    )
    pert_dataset = PerturbationData(adata)
    pert_dataset.pair_cells()
    history = pert_model.train_model(
        dataset=pert_dataset, epochs=2, batch_size=16, lr=5e-5, save_dir=tmp_path / "pert_model"
    )
    predictions = pert_model.predict_perturbation(pert_dataset, batch_size=32)
    assert history["train_loss"][1] < history["train_loss"][0]
    assert history["valid_loss"] == []
    assert predictions.shape == adata.shape


def test_example_3_own_loop(hub, dataset):
    torch.manual_seed(0)
    model = scGPTModel.from_pretrained("scgpt-human")
    optimizer = torch.optim.Adam(model.model.parameters(), lr=1e-3)
    dataloaders = model.prepare_dataloader(dataset, batch_size=32, mask_ratio=0.4, return_split=None)
    assert list(dataloaders) == ["train", "val", "test"]
    model.train()
    means = []
    for _ in range(4):
        seen = []
        for batch in dataloaders["train"]:
            output = model.forward(batch, MVC=True, ECS=True)
            losses = model.compute_loss(batch, output_dict=output, MVC=True, ECS=True, mask_value=-1)
            optimizer.zero_grad()
            losses["loss"].backward()
            optimizer.step()
            seen.append(losses["loss"].item())
        means.append(np.mean(seen))
    assert means[-1] < means[0]


def test_custom_gene_list():
    my_genes = ["GENE1", "GENE2", "GENEN"]
    config = scGPTConfig(ntoken=len(my_genes), use_default_gene_vocab=False, d_model=16, nhead=2, nlayers=1)
    model = scGPTModel(config, gene_list=my_genes, device="cuda")
    assert model.vocab.tokens == ("GENE1", "GENE2", "GENEN", "<pad>", "<cls>")
    assert model.config.ntoken == 5


def test_mixed_precision(folder, dataset):
    model = scGPTModel.from_pretrained(folder)
    history = model.train_model(dataset, epochs=1, use_amp=True, grad_clip=1.0)
    assert np.isfinite(history["train_loss"]).all()


def test_distributed_training(folder, dataset, tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        model = scGPTModel.from_pretrained(folder, device="cpu")
        batch = next(iter(model.prepare_dataloader(dataset, batch_size=4, return_split="train")))
        parallel = DDP(model.model)
        with torch.no_grad():
            output = parallel(batch["src"], batch["values"], batch["src_key_padding_mask"])
        torch.testing.assert_close(output["cell_emb"], model.forward(batch)["cell_emb"].detach())
    finally:
        dist.destroy_process_group()
