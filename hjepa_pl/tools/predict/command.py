"""`hjepa predict`: write the features of a set of images."""

import sys
from collections.abc import Sequence

from hjepa_pl.tools.parser import Parser
from hjepa_pl.types import ConfigError, RunStopped

_DESCRIPTION = """Write the features of images to one .safetensors file, with labels and paths.

Images are prepared as for the probes. The file has `features` (N, D), `labels` (N; -1 without one), `valid` (N; false
for files that cannot be decoded, whose features are NaN) and, of files, `paths` (the text, one a line). Its header says
of which network and images they are. It appears when it is complete."""

_EXAMPLES = """examples:
  hjepa predict photographs --ckpt results/folder --out photographs.safetensors
  hjepa predict cifar10 --split test --ckpt encoder.safetensors --out test.safetensors --dtype float16"""


def _parser() -> Parser:
    parser = Parser("predict", _DESCRIPTION, _EXAMPLES)
    add = parser.add_argument
    add("data", metavar="DATA", help="a folder of images, or the name of a dataset (digits, cifar10, ...)")
    add("--ckpt", required=True, metavar="PATH", help="a checkpoint, the folder of a run, or an export")
    add("--out", required=True, metavar="FILE", help="the .safetensors file to write")
    add("--root", metavar="FOLDER", help="folder of the files of a dataset that is given by name (default data)")
    add("--split", default="train", help="split to read, if the images have any (default train)")
    add("--branch", choices=["target", "online"], help="encoder to use (default: target, if the model has one)")
    add("--dtype", choices=["float32", "float16"], default="float32", help="of the features")
    add("--batch-size", type=int, default=256, metavar="N", help="images at a time (default 256)")
    add("--num-workers", type=int, metavar="N", help="processes that decode files (default: one less than the CPUs)")
    add("--device", default="auto", help="cpu, cuda, mps or auto (default)")
    add("--force", action="store_true", help="replace FILE")
    return parser


def run(args: Sequence[str]) -> int:
    """Write the features; return 0, 1 if too many files cannot be decoded, 2 for a wrong setting."""
    status = 2
    try:
        options = _parser().parse_args(list(args))
        # Imported here, so that --help does not wait for torch.
        from hjepa_pl.tools.predict.features import Request, predict

        return predict(Request(**vars(options)))
    except RunStopped as error:
        sentence, status = str(error), 1
    except ConfigError as error:
        sentence = str(error)
    except OSError as error:
        sentence = f"{error.filename or 'the output'} cannot be written ({error.strerror or error})."
    print(f"hjepa predict: error: {sentence}", file=sys.stderr)
    return status
