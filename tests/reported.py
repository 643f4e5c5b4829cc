"""Made-up folders of runs, as many as wanted: the trainings and attacks of a report."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cartl_cli.core.config import AttackConfig, PretrainConfig, TransferConfig
from cartl_cli.core.runs.manifest import DataRecord, Manifest, ModelSpec, Run, SourceRecord
from cartl_cli.core.runs.results import Added, AttackResults, Check, EpsResults, TrainingResults
from cartl_cli.core.runs.weights import to_bytes
from cartl_cli.core.statistics import accuracy_interval
from cartl_cli.core.storage import describe


def outcomes(clean: Tensor, robust: Tensor, attacks: int = 3) -> dict[str, Tensor]:
    """What an attack at one eps stores whose first attack fells every image that falls."""
    n = len(clean)
    fell_at = torch.full((1, attacks, n), -1, dtype=torch.int32)
    fell_at[0, :, ~clean] = -2
    fell_at[0, 0, clean & ~robust] = 5
    return {
        "clean": clean,
        "margin": torch.zeros(n),
        "fell_at": fell_at,
        "last": robust[None].clone(),
        "indices": torch.arange(n),
    }


CLASSES = ("a", "b", "c", "d")
EPS = 8 / 255


TRAIN_IMAGES = {"cifar10": 50000, "cifar100": 50000, "svhn": 73257, "gtsrb": 26640}


class Runs:
    """A folder of runs that is filled one by one; names are those of the folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = 0
        folder.mkdir(parents=True, exist_ok=True)

    def pretrain(self, name: str, **settings: Any) -> Run:
        """A finished source run."""
        config = PretrainConfig.model_validate({"eps": EPS, **settings})
        return self._training(name, "pretrain", config, config.k, config.dataset, None)

    def transfer(self, source: Run, name: str, **settings: Any) -> Run:
        """A finished target run of a source run."""
        config = TransferConfig.model_validate({"source": source.name, **settings})
        k = config.k if isinstance(config.k, int) else source.manifest.k
        return self._training(name, "transfer", config, k, config.dataset, source)

    def attack(
        self,
        attacked: Run,
        name: str,
        clean: int,
        robust: int | tuple[int, ...],
        pgd: int | None = None,
        n: int = 1000,
        trust: tuple[Check, ...] = (),
        fingerprint: str = "",
        status: str = "completed",
        outcomes: Mapping[str, Tensor] | None = None,
        **settings: Any,
    ) -> Run:
        """A finished attack that left so many of n images; ``robust`` one count for each eps."""
        config = AttackConfig.model_validate(
            {"run": attacked.name, "eps": [EPS], "norm": "linf", "limit": None, **settings}
        )
        left = (robust,) if isinstance(robust, int) else robust
        results = AttackResults(
            n=n,
            clean_accuracy=clean / n,
            clean_interval=accuracy_interval(clean, n),
            by_eps=tuple(
                _at(config, eps, clean, count, pgd, n)
                for eps, count in zip(config.eps, left, strict=True)
            ),
            half_eps=None,
            trust=trust,
            seconds=1.0,
        )
        weights = attacked.manifest.weights
        assert weights is not None
        record = SourceRecord(
            run=attacked.name, sha256=weights.sha256, k=attacked.manifest.k, fdm_lambda=None
        )
        data = attacked.manifest.data
        if fingerprint:
            data = data.model_copy(update={"fingerprint": fingerprint})
        manifest = {
            "kind": "attack",
            "model": attacked.manifest.model,
            "config": config,
            "k": attacked.manifest.k,
            "data": data.model_copy(update={"measured_images": n}),
            "source": record,
            "results": results if status == "completed" else None,
            "status": status,
        }
        if outcomes is not None:
            content = to_bytes(dict(outcomes))
            manifest["outcomes"] = describe("outcomes.safetensors", content)
        run = self._write(name, manifest)
        if outcomes is not None:
            (run.folder / "outcomes.safetensors").write_bytes(content)
        return run

    def _training(
        self,
        name: str,
        kind: str,
        config: PretrainConfig | TransferConfig,
        k: int,
        dataset: str,
        source: Run | None,
    ) -> Run:
        record = None
        if source is not None:
            assert source.manifest.weights is not None
            assert isinstance(source.manifest.config, PretrainConfig)
            record = SourceRecord(
                run=source.name,
                sha256=source.manifest.weights.sha256,
                k=source.manifest.k,
                fdm_lambda=source.manifest.config.fdm_lambda,
            )
            arch = source.manifest.model.arch
        else:
            assert isinstance(config, PretrainConfig)
            arch = config.arch
        manifest = {
            "kind": kind,
            "model": ModelSpec(arch=arch, classes=CLASSES, preprocessing={"image_size": 32}),
            "config": config,
            "k": k,
            "data": DataRecord(
                name=dataset,
                fingerprint=hashlib.sha256(dataset.encode()).hexdigest(),
                train_images=round(
                    getattr(config, "fraction", 1) * TRAIN_IMAGES.get(dataset, 4000)
                ),
                measured="test",
                measured_images=1000,
                augment=(),
                notes=(),
            ),
            "source": record,
            "weights": describe("model.safetensors", f"{self.folder}{name}".encode()),
            "results": TrainingResults(clean_accuracy=0.9, n=1000, seconds=1.0),
        }
        return self._write(name, manifest)

    def _write(self, name: str, fields: Mapping[str, Any]) -> Run:
        self.number += 1
        manifest = Manifest(
            **{
                "number": self.number,
                "status": "completed",
                "created": "2026-01-01T00:00:00+00:00",
                "versions": {"cartl": "0.2.0"},
                **fields,
            }
        )
        folder = self.folder / name
        folder.mkdir()
        (folder / "manifest.json").write_text(manifest.model_dump_json(indent=1))
        return Run(folder, manifest)

    def edit(self, name: str, *place: str | int, value: Any) -> None:
        """Change one value of a stored manifest."""
        path = self.folder / name / "manifest.json"
        content = json.loads(path.read_text())
        inner = content
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        path.write_text(json.dumps(content))


def _at(
    config: AttackConfig, eps: float, clean: int, robust: int, pgd: int | None, n: int
) -> EpsResults:
    """What attacks of which each but PGD finds nothing more leave."""
    alone = robust if pgd is None else pgd
    added = []
    standing = clean
    for attack in config.attacks:
        left = alone if attack == "pgd" else robust
        own = left / n if attack in ("pgd", "pgd-margin") else None
        left = min(left, standing)
        added.append(
            Added(
                attack=attack,
                attacked=standing,
                fell=standing - left,
                alone=own,
                robust_accuracy=left / n,
            )
        )
        standing = left
    return EpsResults(
        eps=eps,
        step_size=config.step(eps),
        robust_accuracy=robust / n,
        interval=accuracy_interval(robust, n),
        final_iterate_accuracy=None,
        added=tuple(added),
    )


def paper_like(folder: Path, seeds: int = 3, ks: tuple[int, ...] = (4, 6, 8)) -> Runs:
    """Source runs with and without FDM, and four methods of transfer from them, attacked."""
    runs = Runs(folder)
    for seed in range(seeds):
        plain = runs.pretrain(f"at-{seed}", seed=seed)
        for k in ks:
            fdm = runs.pretrain(f"fdm-k{k}-{seed}", seed=seed, k=k, fdm_lambda=0.005)
            methods: list[tuple[str, Run, dict[str, Any], int, int]] = [
                ("vanilla", plain, {"freeze_bn": "all"}, 900, 260),
                ("lwf", plain, {"lwf_lambda": 0.01, "k": None}, 850, 120),
                ("neft", plain, {"neft_beta": 0.4}, 870, 330),
                ("cartl", fdm, {"neft_beta": 0.4}, 880, 380),
            ]
            for method, source, settings, clean, robust in methods:
                shift = 9 * (k - 6) + 4 * seed
                settings = {"k": k, **settings} if method != "lwf" else settings
                if method == "lwf" and k != 6:
                    continue
                name = f"{method}-k{k}-{seed}"
                target = runs.transfer(source, name, seed=seed, **settings)
                left = robust - 4 * abs(k - 5) - 3 * seed
                draws = torch.rand(1000, generator=torch.Generator().manual_seed(seed))
                order = (draws + 0.05 * torch.rand(1000)).argsort()
                right, stands = torch.zeros(2, 1000, dtype=torch.bool)
                right[order[: clean + shift]] = True
                stands[order[:left]] = True
                made = outcomes(right, stands)
                runs.attack(target, f"{name}-attack", clean + shift, left, left + 60, outcomes=made)
    return runs
