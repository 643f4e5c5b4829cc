"""The model card: what the network is, how robust it was found, and what nobody knows of it."""

import json
import re
from collections.abc import Iterator
from typing import Any

from cartl_cli import __version__
from cartl_cli.core.choices import NORM_SIGNS
from cartl_cli.core.config import ImportConfig, PretrainConfig
from cartl_cli.core.config.told import last_blocks, told_settings
from cartl_cli.core.config.values import shown_pixels
from cartl_cli.core.exports.graphs import METADATA
from cartl_cli.core.exports.subject import Subject, described, threat
from cartl_cli.core.registry.evaluation_attacks import EVALUATION_ATTACKS
from cartl_cli.core.registry.training_attacks import TRAINING_ATTACKS
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.results import MEANINGS

LICENCES = {"mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-sa-4.0"}
"""What hubs call the licences that published robust models have."""


def model_card(subject: Subject) -> str:
    """The README.md of a hub folder: Markdown behind a front matter in YAML."""
    known = described(subject)
    sections = {
        "How robust it is": _robustness(known),
        "What is not known": _unknown(subject, known),
        "How to use it": _use(subject, known),
        "How it was made": _making(subject),
    }
    side, classes = subject.side, len(known["classes"])
    about = (
        f"An image classifier with {classes} classes: {_told(known['architecture'])}, exported by "
        f"cartl {__version__} from the run {_told(subject.run.name)}. It takes images "
        f"(batch, 3, {side}, {side}), float32 in [0, 1], and gives logits (batch, {classes})."
    )
    parts = ["---", *_front_matter(subject, known), "---", "", f"# {_told(subject.run.name)}"]
    parts += ["", about]
    for title, lines in sections.items():
        parts += ["", f"## {title}", "", *lines]
    return "\n".join(parts) + "\n"


def _front_matter(subject: Subject, known: dict[str, Any]) -> Iterator[str]:
    """Lines of YAML; every value is JSON, which YAML understands."""
    if terms := known["licence"]:
        if terms.lower() in LICENCES:
            yield f"license: {terms.lower()}"
        else:
            yield "license: other"
            yield f"license_name: {_quoted(terms)}"
    yield "library_name: pytorch"
    yield "pipeline_tag: image-classification"
    yield "tags: [cartl, image-classification, adversarial-robustness]"
    attack, measured = known["attack"], known["measured"]
    cited = attack and attack["checks"] != "invalid" and attack["split"] != "train"
    found = attack if cited else measured
    if found is None:
        return
    yield "model-index:"
    yield f"- name: {_quoted(subject.run.name)}"
    yield "  results:"
    yield "  - task: {type: image-classification}"
    name, split = _quoted(found["data"]), _quoted(found["split"])
    yield f"    dataset: {{name: {name}, type: {name}, split: {split}}}"
    yield "    metrics:"
    clean, *robust = ((line, found["n"]) for line in _lines(found))
    if measured is not None and _on_more(measured, found):
        clean = next(_lines(measured)), measured["n"]
    for line, n in (clean, *robust):
        told = [*([line["conditions"]] if line["conditions"] else []), f"n = {n}"]
        shown = _quoted(f"{line['name']} ({', '.join(told)})")
        yield f"    - {{type: accuracy, value: {line['accuracy']:.4f}, name: {shown}}}"


def _on_more(found: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether one was measured on more images of the same split of the same data."""
    same = all(found[key] == other[key] for key in ("data", "split"))
    return same and bool(found["n"] > other["n"])


def _lines(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What was measured, line by line: clean, then each eps. ``found``: see ``described``."""
    yield {
        "name": "clean accuracy",
        "conditions": "",
        "accuracy": found["clean_accuracy"],
        "interval": found["clean_interval"],
    }
    radii = found.get("by_eps", [])
    if "robust_accuracy" in found:
        radii = [{**found, "interval": found["robust_interval"]}]
    for radius in radii:
        eps, norm = shown_pixels(radius["eps"]), NORM_SIGNS[found["norm"]]
        yield {
            "name": "robust accuracy",
            "conditions": f"{' + '.join(found['attacks'])}, {norm}, eps {eps}",
            "accuracy": radius["robust_accuracy"],
            "interval": radius["interval"],
        }


def _robustness(known: dict[str, Any]) -> Iterator[str]:
    attack, measured = known["attack"], known["measured"]
    if attack:
        yield from _table(attack)
        yield from _classes(attack)
        yield ""
        yield f"{_effort(attack)} {_meaning(attack['checks'])}"
        yield from _not_passed(attack)
        if measured is not None and (attack["split"] == "train" or _on_more(measured, attack)):
            yield ""
            yield from _when_made(known)
        return
    yield "**`cartl attack` was not run on this model.**"
    if known["claim"]:
        yield f"Its maker measured {_told(known['claim'])}. That was not checked."
    else:
        yield "Nobody knows how robust it is."
    if measured is None:
        yield "It was not measured on clean images here either."
    else:
        yield from _when_made(known)


def _when_made(known: dict[str, Any]) -> Iterator[str]:
    """The accuracies from when the model was made, or imported."""
    measured = known["measured"]
    when = "imported" if known["imported"] else "made"
    quick = ", and by a quick attack that was not checked" if "eps" in measured else ""
    yield f"When it was {when}, it was measured on clean images{quick}:"
    yield ""
    yield from _table(measured)


def _meaning(checks: str) -> str:
    """What the checks of an attack say, loud where it is no praise."""
    first, dot, rest = MEANINGS[checks].partition(". ")
    return f"{first}{dot}{rest}" if checks == "ok" else f"**{first}.** {rest}"


def _table(found: dict[str, Any]) -> Iterator[str]:
    yield "| | attacks | norm | eps | accuracy | 95 % interval | n |"
    yield "|---|---|---|---|---|---|---|"
    for line in _lines(found):
        attacks, norm, eps = [*line["conditions"].rsplit(", ", 2), "", ""][:3]
        low, high = line["interval"]
        bound = "≤ " if attacks else ""
        yield (
            f"| {line['name']} | {attacks} | {norm} | {eps.removeprefix('eps ')} | "
            f"{bound}{_percent(line['accuracy'])} | {_percent(low)} to {_percent(high)} | "
            f"{found['n']} |"
        )
    yield ""
    part = ", drawn from all of them" if found["part"] else ""
    yield f"Images: {found['n']} {_told(found['split'])} images of {_told(found['data'])}{part}."


def _classes(attack: dict[str, Any]) -> Iterator[str]:
    found = attack["by_class"]
    if found["balanced_clean"] is None:
        return
    means = [found["balanced_clean"], found["balanced_robust"]]
    worst = [found["worst_clean"], found["worst_robust"]]
    mean, left = map(_percent, means)
    classes = [f"{_told(one['class'])} ({_percent(one['accuracy'])})" for one in worst]
    yield ""
    yield (
        f"Mean of the classes: {mean} clean, ≤ {left} at the largest eps. Worst class: "
        f"{classes[0]} clean, {classes[1]} at the largest eps."
    )


def _effort(attack: dict[str, Any]) -> str:
    counts = [what for what in ("steps", "queries", "restarts") if what in attack]
    effort = ", ".join(f"{what}: {attack[what]}" for what in counts)
    return (
        f"The attack is the run {_told(attack['run'])}{f' ({effort})' if effort else ''}. An image "
        "counts as robust if it withstood all attacks of its line."
    )


def _not_passed(attack: dict[str, Any]) -> Iterator[str]:
    if attack["not_passed"]:
        yield ""
    for check in attack["not_passed"]:
        said = "failed" if check["verdict"] == "fail" else "warned"
        yield f"- Check {check['id']} {said}: {_told(check['text'])}"


def _unknown(subject: Subject, known: dict[str, Any]) -> Iterator[str]:
    attack = known["attack"]
    if attack is None:
        yield "- No attack of `cartl attack` was made on these weights."
    else:
        left_out = [name for name in EVALUATION_ATTACKS if name not in attack["attacks"]]
        if left_out:
            yield f"- These attacks were not run: {', '.join(left_out)}."
        others = [norm for name, norm in NORM_SIGNS.items() if name != attack["norm"]]
        yield f"- Other radii were not tried, nor the {others[0]} norm."
    if len(subject.attacks) > 1:
        rest = ", ".join(_told(run.name) for run in subject.attacks[1:])
        yield f"- One attack is shown. Others on the same weights: {rest}."
    yield "- Other changes of images (blur, weather, patches, other cameras) were not tried."
    if not known["licence"]:
        yield "- Nobody has stated a licence for it."
    if known["source_licence"]:
        terms = _told(known["source_licence"])
        yield f"- Its source model has the licence {terms}: see what that asks of this one."


def _use(subject: Subject, known: dict[str, Any]) -> Iterator[str]:
    side = subject.side
    yield "It needs torch alone. `model.pt2` has the network and its weights:"
    yield ""
    yield "```python"
    yield "import json"
    yield "import torch"
    yield ""
    yield f'extra = {{"{METADATA}": ""}}'
    yield 'model = torch.export.load("model.pt2", extra_files=extra).module()'
    yield f'classes = json.loads(extra["{METADATA}"])["classes"]'
    yield f"logits = model(torch.rand(1, 3, {side}, {side}))  # your images in [0, 1]"
    yield "print(classes[logits.argmax(1)[0]])"
    yield "```"
    yield ""
    yield "An image file becomes what it takes like this:"
    yield ""
    steps = known["preprocessing"]["steps"]
    yield from (f"{number}. {step}" for number, step in enumerate(steps, 1))
    yield ""
    yield (
        "`model.safetensors` has the weights alone, byte for byte those of the run, by the names "
        "of cartl's modules. `config.json` has the classes, the preprocessing and the figures."
    )


def _making(subject: Subject) -> Iterator[str]:
    yield from _made(subject.run)
    yield f"sha256 of the weights: `{subject.sha256}`."
    if subject.source is not None:
        yield ""
        yield f"### Its source model, {_told(subject.source.name)}"
        yield ""
        yield from _made(subject.source)


def _made(run: Run) -> Iterator[str]:
    """How the model of one run was made: sentences, then a table of its settings."""
    manifest = run.manifest
    yield from _method(run)
    yield ""
    if manifest.kind != "import":  # of an import they say how it was looked at, if it was
        yield "| setting | value | meaning |"
        yield "|---|---|---|"
        for told in told_settings(run.making):
            yield f"| {told.name} | {_told(told.value)} | {_told(told.meaning)} |"
        yield ""
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    yield f"{'Imported' if manifest.kind == 'import' else 'Made'} with: {_told(versions)}."


def _method(run: Run) -> Iterator[str]:
    manifest, config = run.manifest, run.making
    if isinstance(config, ImportConfig):
        original = manifest.original
        if original is not None:
            yield f"It was imported from the file {_told(original.file)}"
            yield f"(sha256 `{original.sha256}`), and was trained elsewhere."
            if original.remarks:
                yield f"Noted while it was read: {_told('; '.join(original.remarks))}."
            if original.claim:
                yield f"Its maker measured {_told(original.claim)}; that was not checked."
        yield f"Origin: {_told(config.origin) or 'not stated'}."
        yield f"Licence: {_told(config.licence) or 'not stated'}."
        claimed = f"claimed to resist {_told(config.threat)}" if config.threat else "none claimed"
        yield f"Threat model: {claimed}; this is a claim, not a measurement."
        return
    if isinstance(config, PretrainConfig):
        about = TRAINING_ATTACKS[config.method].about
        yield f"It was trained from scratch (method {config.method}: {about})."
    else:
        record = run.source
        yield (
            f"It is the source model {_told(record.run)}, {last_blocks(manifest.k)} fine-tuned "
            f"{config.tuning.about} (method: {config.look(record.fdm_lambda).label}). All before "
            "is as in the source model."
        )
    yield f"It was trained on {manifest.data.train_images} images of {_told(manifest.data.name)}."
    yield f"Augmentation: {', '.join(manifest.data.augment) or 'none'}."
    if trained := threat(run):
        yield f"The attack in its training: {trained}."


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _told(text: str) -> str:
    """Any text on one line of Markdown, with nothing in it taken for markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(text.split()))


def _quoted(text: str) -> str:
    return json.dumps(" ".join(text.split()), ensure_ascii=False)
