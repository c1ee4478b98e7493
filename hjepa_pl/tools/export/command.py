"""`hjepa export`: write an encoder in another format, and check it against the checkpoint."""

import sys
from collections.abc import Sequence

from hjepa_pl.tools.export.formats import FORMATS
from hjepa_pl.tools.parser import Parser
from hjepa_pl.types import ConfigError

_DESCRIPTION = """Write the encoder of a run for other programs.

What was written is loaded as its user will load it, and compared with the checkpoint on real images; the largest
difference of features and tokens is printed. Above the tolerance (1e-5 in 32 bits, 1e-4 for ONNX) nothing is kept and
the exit status is 1."""

_EXAMPLE = """examples:
  hjepa export --ckpt results/quickstart --format hf --out digits-vit
  hjepa export --ckpt results/overnight/checkpoints/last.ckpt --format onnx --out encoder.onnx --dtype float16"""


def _parser() -> Parser:
    formats = "\n".join(f"  {name:<14}{meaning}" for name, (_, meaning) in FORMATS.items())
    parser = Parser("export", f"{_DESCRIPTION}\n\nformats:\n{formats}", _EXAMPLE)
    add = parser.add_argument
    add("--ckpt", required=True, metavar="PATH", help="a checkpoint, or the folder of a run (its last.ckpt)")
    add("--format", required=True, choices=list(FORMATS), metavar="FORMAT", help="one of the above")
    add("--out", required=True, metavar="PATH", help="file to write; for hf a folder")
    add("--branch", choices=["target", "online"], help="encoder to export (default: target, if the model has one)")
    add("--what", choices=["encoder", "encoder+pyramid", "all"], default="encoder", help="weights (default encoder)")
    add("--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="of the weights")
    add("--force", action="store_true", help="replace what is at --out")
    return parser


def run(args: Sequence[str]) -> int:
    """Export; return 0, 1 if what was written computes something else, 2 for a wrong setting."""
    try:
        options = _parser().parse_args(list(args))
        # Imported here, so that --help does not wait for torch.
        from hjepa_pl.tools.export.export import Request, export

        return export(Request(**vars(options)))
    except ConfigError as error:
        sentence = str(error)
    except OSError as error:
        sentence = f"{error.filename or 'the output'} cannot be written ({error.strerror or error})."
    print(f"hjepa export: error: {sentence}", file=sys.stderr)
    return 2
