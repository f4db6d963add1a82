"""What a torch checkpoint of weights may import, by name, and what that is to ``shared.weight_files.pickles``."""

import re
from typing import Final

STORAGES: Final = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
DTYPES: Final = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "bool": "BOOL",
}
DENSE: Final = {
    f"{module}.{name}": dtype for name, dtype in (STORAGES | DTYPES).items() for module in ("torch", "torch.cuda")
}
"""Kinds of data that networks are made of, as safetensors names them."""

IMPORTS: Final = frozenset(
    {
        "_codecs.encode",
        "builtins.bytearray",
        "builtins.complex",
        "builtins.set",
        "collections.Counter",
        "collections.OrderedDict",
        "torch.Size",
        "torch._tensor._rebuild_from_type_v2",
        "torch.device",
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
        *DENSE,
    }
)
OTHER_IMPORTS: Final = re.compile(
    r"torch\.(storage\.|sparse\.|cuda\.|cuda\.sparse\.)?\w*(Storage|Tensor)"
    r"|torch\._utils\._rebuild_\w+"
    r"|torch\.(bcomplex|complex|float|int|uint|bits|qint|quint|per_channel|per_tensor)\w*"
)
"""What torch also loads: other kinds of tensors and of data."""

REBUILD: Final = frozenset({"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"})
REBUILD_WITH_DTYPE: Final = "torch._utils._rebuild_tensor_v3"
WRAPPERS: Final = frozenset(
    {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state", "torch.Size"}
)
"""Calls that give their first argument, as far as it matters here."""

OLD_MODULES: Final = {"__builtin__": "builtins"}
"""Names of Python 2, under which pickles of protocol 2 write modules."""
