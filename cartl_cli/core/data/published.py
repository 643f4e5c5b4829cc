"""The public data sets: what is published where, and what reads it.

The sha256 of GTSRB's files are those that torchvision's own prototype data sets have, all others
those of TensorFlow Datasets. An archive that differs is never opened.
"""

from collections.abc import Callable
from dataclasses import dataclass

from cartl_cli.core.data import formats
from cartl_cli.core.data.downloads import Archive


@dataclass(frozen=True)
class Published:
    """A public data set: its class names in the order of its labels, its archives, their reader."""

    classes: tuple[str, ...]
    archives: tuple[Archive, ...]
    read: Callable[[formats.Files, int], tuple[formats.Part, formats.Part]]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _archive(name: str, size: int, sha256: str, *places: str) -> Archive:
    return Archive(name, size, sha256, tuple(f"{place}{name}" for place in places))


KRIZHEVSKY = "https://www.cs.toronto.edu/~kriz/"
HOUSE_NUMBERS = "http://ufldl.stanford.edu/housenumbers/"
SIGNS = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"
DIGITS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
COATES = "http://ai.stanford.edu/~acoates/stl10/"

TEN_DIGITS = tuple("0123456789")
CIFAR100_CLASSES = _words(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
    """
)

PUBLIC = {
    "cifar10": Published(
        _words("airplane automobile bird cat deer dog frog horse ship truck"),
        (
            _archive(
                "cifar-10-binary.tar.gz",
                170_052_171,
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                KRIZHEVSKY,
            ),
        ),
        formats.cifar10,
    ),
    "cifar100": Published(
        CIFAR100_CLASSES,
        (
            _archive(
                "cifar-100-binary.tar.gz",
                168_513_733,
                "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
                KRIZHEVSKY,
            ),
        ),
        formats.cifar100,
    ),
    "svhn": Published(
        TEN_DIGITS,
        (
            _archive(
                "train_32x32.mat",
                182_040_794,
                "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
                HOUSE_NUMBERS,
            ),
            _archive(
                "test_32x32.mat",
                64_275_384,
                "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
                HOUSE_NUMBERS,
            ),
        ),
        formats.svhn,
    ),
    "gtsrb": Published(
        tuple(f"{number}" for number in range(43)),
        (
            _archive(
                "GTSRB-Training_fixed.zip",
                187_490_228,
                "df4144942083645bd60b594de348aa6930126c3e0e5de09e39611630abf8455a",
                SIGNS,
            ),
            _archive(
                "GTSRB_Final_Test_Images.zip",
                88_978_620,
                "48ba6fab7e877eb64eaf8de99035b0aaecfbc279bee23e35deca4ac1d0a837fa",
                SIGNS,
            ),
            _archive(
                "GTSRB_Final_Test_GT.zip",
                99_620,
                "f94e5a7614d75845c74c04ddb26b8796b9e483f43541dd95dd5b726504e16d6d",
                SIGNS,
            ),
        ),
        formats.gtsrb,
    ),
    "mnist": Published(
        TEN_DIGITS,
        (
            _archive(
                "train-images-idx3-ubyte.gz",
                9_912_422,
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                *DIGITS,
            ),
            _archive(
                "train-labels-idx1-ubyte.gz",
                28_881,
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                *DIGITS,
            ),
            _archive(
                "t10k-images-idx3-ubyte.gz",
                1_648_877,
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                *DIGITS,
            ),
            _archive(
                "t10k-labels-idx1-ubyte.gz",
                4_542,
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                *DIGITS,
            ),
        ),
        formats.mnist,
    ),
    "fashion-mnist": Published(
        (
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        (
            _archive(
                "train-images-idx3-ubyte.gz",
                26_421_880,
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                FASHION,
            ),
            _archive(
                "train-labels-idx1-ubyte.gz",
                29_515,
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                FASHION,
            ),
            _archive(
                "t10k-images-idx3-ubyte.gz",
                4_422_102,
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                FASHION,
            ),
            _archive(
                "t10k-labels-idx1-ubyte.gz",
                5_148,
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                FASHION,
            ),
        ),
        formats.mnist,
    ),
    "stl10": Published(
        _words("airplane bird car cat deer dog horse monkey ship truck"),
        (
            _archive(
                "stl10_binary.tar.gz",
                2_640_397_119,
                "f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866",
                COATES,
            ),
        ),
        formats.stl10,
    ),
}
