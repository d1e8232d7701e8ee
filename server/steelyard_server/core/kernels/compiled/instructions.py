"""Instructions that numba has no word for, written for LLVM, which has them or others in their place everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from steelyard_server.core.kernels import layout

_BIT, _BYTE, _INT, _WORD, _PAIR = (ir.IntType(bits) for bits in (1, 8, 32, 64, 128))
_DOUBLE = ir.DoubleType()


@intrinsic  # type: ignore[untyped-decorator]
def high_word(typing: Any, a: Any, b: Any) -> Any:
    """The upper 64 bits of the product of two words."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        product = builder.mul(*(builder.zext(each, _PAIR) for each in arguments))
        return builder.trunc(builder.lshr(product, _PAIR(64)), _WORD)

    return types.uint64(types.uint64, types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Asks for the cache line of array[index] and does not wait for it; any index is harmless."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.bitcast(_address(context, builder, signature, arguments), _BYTE.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [place.type, _INT, _INT, _INT])
        function = builder.module.declare_intrinsic("llvm.prefetch", [place.type], kind)
        # To read, to be kept in all caches, data.
        builder.call(function, [place, _INT(0), _INT(3), _INT(1)])
        return context.get_dummy_value()

    return types.void(array, types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def place_in_words(typing: Any, nodes: Any, first: Any, rest: Any, unseen: Any, extra: Any) -> Any:
    """Which of NODES packed nodes from `first` on holds the point `rest` of their line; what lies before that one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, _, rest, unseen, extra = arguments
        words = _load(context, builder, signature, arguments, _WORD, layout.NODES)
        live = builder.lshr(words, _all(layout.MASS_BITS, layout.NODES))
        live = builder.and_(live, _all((1 << layout.COUNT_BITS) - 1, layout.NODES))
        never = builder.lshr(words, _all(layout.MASS_BITS + layout.COUNT_BITS, layout.NODES))
        masses = builder.and_(words, _all((1 << layout.MASS_BITS) - 1, layout.NODES))
        masses = builder.add(masses, builder.mul(live, _spread(builder, extra, layout.NODES)))
        masses = builder.add(masses, builder.mul(never, _spread(builder, unseen, layout.NODES)))
        return context.make_tuple(builder, signature.return_type, _place(builder, masses, rest))

    answer = types.UniTuple(types.uint64, 2)
    return answer(nodes, *[types.uint64] * 4), generate


@intrinsic  # type: ignore[untyped-decorator]
def place_in_leaves(typing: Any, leaves: Any, first: Any, rest: Any, unseen: Any, extra: Any) -> Any:
    """The same of LEAVES leaves."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, _, rest, unseen, extra = arguments
        lanes = layout.LEAVES
        found = _load(context, builder, signature, arguments, _INT, lanes)
        masses = builder.zext(found, ir.VectorType(_WORD, lanes))
        never = builder.icmp_unsigned("==", found, _all(layout.UNSEEN, lanes, _INT))
        masses = builder.select(never, _spread(builder, unseen, lanes), masses)
        masses = builder.add(masses, _spread(builder, extra, lanes))
        dead = builder.icmp_unsigned("==", found, _all(0, lanes, _INT))
        masses = builder.select(dead, _all(0, lanes), masses)
        return context.make_tuple(builder, signature.return_type, _place(builder, masses, rest))

    answer = types.UniTuple(types.uint64, 2)
    return answer(leaves, *[types.uint64] * 4), generate


def horner(coefficients: Sequence[float]) -> Any:
    """A function: the sum of coefficients[k] * x**k, highest power first, one product and one sum a time."""

    @intrinsic  # type: ignore[untyped-decorator]
    def series(typing: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            total = _DOUBLE(coefficients[-1])
            for coefficient in reversed(coefficients[:-1]):
                total = builder.fadd(builder.fmul(total, arguments[0]), _DOUBLE(coefficient))
            return total

        return types.float64(types.float64), generate

    return series


def _place(builder: Any, masses: Any, rest: Any) -> list[Any]:
    """How many masses end at or before `rest`, side by side on a line, and their sum."""
    lanes = masses.type.count
    ends, step = masses, 1
    while step < lanes:
        moved = [lanes] * step + list(range(lanes - step))
        shifted = builder.shuffle_vector(ends, _all(0, lanes), ir.VectorType(_INT, lanes)(moved))
        ends, step = builder.add(ends, shifted), step * 2
    past = builder.icmp_unsigned("<=", ends, _spread(builder, rest, lanes))
    flags = builder.bitcast(past, ir.IntType(lanes))
    count = builder.zext(builder.ctpop(flags), _WORD)
    kept = builder.select(past, masses, _all(0, lanes))
    while lanes > 1:
        lanes //= 2
        lower, upper = (
            builder.shuffle_vector(kept, kept, ir.VectorType(_INT, lanes)(list(range(at, at + lanes))))
            for at in (0, lanes)
        )
        kept = builder.add(lower, upper)
    return [count, builder.extract_element(kept, _INT(0))]


def _address(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Of the element whose index is the second argument, in the array that is the first."""
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.gep(array.data, [arguments[1]])


def _load(context: Any, builder: Any, signature: Any, arguments: Any, kind: Any, lanes: int) -> Any:
    """`lanes` elements from there on."""
    line = ir.VectorType(kind, lanes).as_pointer()
    place = builder.bitcast(_address(context, builder, signature, arguments), line)
    return builder.load(place, align=kind.width // 8)


def _all(value: int, lanes: int, kind: Any = _WORD) -> Any:
    return ir.VectorType(kind, lanes)([value] * lanes)


def _spread(builder: Any, value: Any, lanes: int) -> Any:
    """A vector of one value."""
    kind = ir.VectorType(value.type, lanes)
    one = builder.insert_element(kind(ir.Undefined), value, _INT(0))
    return builder.shuffle_vector(one, kind(ir.Undefined), ir.VectorType(_INT, lanes)([0] * lanes))
