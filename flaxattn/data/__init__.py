"""Input: random-access sources, NumPy transforms, Grain pipelines pure in (seed, step).

    source = open_source(config.data, "train")
    batches = train_batches(source, train_transform(config.data), batch_size=128, seed=0)

Every function here that takes a `config` takes the experiment's `config.data`.
"""

from flaxattn.extras import require_extra

require_extra("train", doing="reading data")

from flaxattn.data.pipeline import Batch as Batch
from flaxattn.data.pipeline import eval_batches as eval_batches
from flaxattn.data.pipeline import train_batches as train_batches
from flaxattn.data.records import Source as Source
from flaxattn.data.sources import open_source as open_source
from flaxattn.data.sources import require_same_classes as require_same_classes
from flaxattn.data.transforms import eval_transform as eval_transform
from flaxattn.data.transforms import train_transform as train_transform
