"""The network as a graph: a program of ``torch.export``, and ONNX, each compared with the model."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule
from torch.nn.functional import interpolate

from cartl_cli.core.errors import CartlError
from cartl_cli.core.exports.subject import Subject, described
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.runtime.randomness import generator

METADATA = "cartl.json"
WORST = 1e-4  # of the largest logit: what a graph may differ by
COARSE = 4  # colours along a side of the smooth images
ONNX_LIMIT = 2**31 - 1  # bytes of one file


def torch_program(subject: Subject) -> bytes:
    """A ``.pt2`` file; its extra file ``cartl.json`` has what is ``described``.

    Raises CartlError if the network cannot be exported or the program answers otherwise.
    """
    file = io.BytesIO()
    torch.export.save(
        traced(subject), file, extra_files={METADATA: json.dumps(described(subject), indent=2)}
    )
    file.seek(0)
    check(subject, torch.export.load(file).module())
    return file.getvalue()


def onnx_graph(subject: Subject) -> bytes:
    """An ``.onnx`` file; each of its properties is one of what is ``described``, as JSON.

    Raises CartlError like above, and for more weights than one file can hold.
    """
    import onnx
    import onnxruntime

    size = sum(tensor.nbytes for tensor in subject.model.state_dict().values())
    if size > 0.99 * ONNX_LIMIT:
        raise CartlError("a file of ONNX holds 2 GB at most; choose --format torch or hub")
    with _quiet("onnxscript"):
        program = torch.onnx.export(
            traced(subject),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=_BATCH,
        )
    assert program is not None
    proto = program.model_proto
    properties = {name: json.dumps(value) for name, value in described(subject).items()}
    onnx.helper.set_model_props(proto, properties)
    data: bytes = proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def answer(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(logits)

    check(subject, answer)
    return data


_BATCH = ({0: Dim("batch", min=1)},)


def traced(subject: Subject) -> ExportedProgram:
    """The network as a graph over batches of any size. Raises CartlError if there is none."""
    model: BlockModel = subject.model.to(memory_format=torch.contiguous_format)
    try:
        program = torch.export.export(model, (_noise(2, subject.side),), dynamic_shapes=_BATCH)
    except Exception as error:  # of many kinds
        arch, first = subject.run.manifest.model.arch, f"{error}".strip().partition("\n")[0]
        raise CartlError(f"torch.export cannot make a graph of {arch}: {first}") from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)  # it names the files of this machine
    return program


def check(subject: Subject, answer: Callable[[Tensor], Tensor]) -> None:
    """Compare a graph with the model, on noise and on smooth images, one and three at a time.

    Raises CartlError with the largest difference, in parts of the largest logit.
    """
    side, worst = subject.side, 0.0
    with torch.no_grad():
        for count in (1, 3):
            smooth = interpolate(_noise(count, COARSE), (side, side), mode="bilinear")
            for images in (_noise(count, side), smooth):
                expected = subject.model(images)
                difference = (answer(images) - expected).abs().max() / expected.abs().max()
                worst = max(worst, difference.nan_to_num(torch.inf).item())
    if worst > WORST:
        raise CartlError(
            f"not written: its logits differ from the model's by {worst:.1e} of the largest, at "
            f"most {WORST:g} is rounding"
        )


def _noise(count: int, side: int) -> Tensor:
    draws = generator(0, "export", count, side)
    return torch.rand(count, 3, side, side, generator=draws)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """No warnings of a library about what it cannot simplify."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
