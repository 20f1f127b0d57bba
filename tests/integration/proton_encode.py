"""Encodes what it reads, a literal a line, as Qpid Proton does: run by the Python that has Proton. Prints hexadecimal digits."""

import ast
import sys
import uuid

import proton

TAGS = {
    "uuid": uuid.UUID,
    "timestamp": proton.timestamp,
    "symbol": proton.symbol,
    "char": proton.char,
    "ulong": proton.ulong,
    "uint": proton.uint,
    "ushort": proton.ushort,
    "ubyte": proton.ubyte,
    "byte": proton.byte,
    "short": proton.short,
    "int": proton.int32,
    "float": proton.float32,
}


def tagged(value):
    if isinstance(value, list):
        return [tagged(one) for one in value]
    if isinstance(value, dict):
        return {tagged(key): tagged(one) for key, one in value.items()}
    if isinstance(value, tuple):
        tag, inner = value
        if tag == "described":
            return proton.Described(proton.symbol("by"), tagged(inner))
        if tag == "array":
            return proton.Array(proton.UNDESCRIBED, proton.Data.LONG, *inner)
        return TAGS[tag](inner)
    return value


for line in sys.stdin:
    data = proton.Data()
    data.put_object(tagged(ast.literal_eval(line)))
    print(data.encode().hex(), flush=True)
