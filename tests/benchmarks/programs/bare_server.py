"""A gRPC server without Steelyard: asyncio or threads. Says its port, and leaves when its input is closed."""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from tests.benchmarks.programs import bare, parent


def handlers(echo: Any, gathered: Any, pipeline: Any, unary: Any) -> grpc.GenericRpcHandler:
    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Echo": grpc.stream_stream_rpc_method_handler(echo),
        "Gathered": grpc.stream_stream_rpc_method_handler(gathered),
        "Pipeline": grpc.stream_stream_rpc_method_handler(pipeline),
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
    }
    return grpc.method_handlers_generic_handler(bare.SERVICE, methods)


async def serve_with_asyncio(args: Namespace) -> None:
    loop = asyncio.get_running_loop()

    def put_all(group: list[tuple[asyncio.Queue, list[bytes] | None]]) -> None:
        for stream, messages in group:
            stream.put_nowait(messages)

    # One wake-up of the loop for a whole group: it is the dearest part.
    work = bare.Pipeline(lambda group: loop.call_soon_threadsafe(put_all, group), args.answers, args.sorts)

    async def echo(_: object, context: grpc.aio.ServicerContext) -> None:
        while (report := await context.read()) is not grpc.aio.EOF:
            for message in bare.answers(report, args.answers):
                await context.write(message)

    async def gathered(_: object, context: grpc.aio.ServicerContext) -> None:
        while (reports := await context.read()) is not grpc.aio.EOF:
            await context.write(bare.gathered_answer(reports, args.answers))

    async def pipeline(_: object, context: grpc.aio.ServicerContext) -> None:
        stream: asyncio.Queue[list[bytes] | None] = asyncio.Queue()

        async def read() -> None:
            try:
                while (report := await context.read()) is not grpc.aio.EOF:
                    work.put(stream, report)
            finally:
                work.put(stream, None)

        reader = asyncio.create_task(read())
        try:
            while (messages := await stream.get()) is not None:
                for message in messages:
                    await context.write(message)
        finally:
            reader.cancel()

    async def unary(report: bytes, _: object) -> bytes:
        return bare.answers(report, [sum(args.answers)])[0]

    server = grpc.aio.server(options=bare.OPTIONS)
    server.add_generic_rpc_handlers((handlers(echo, gathered, pipeline, unary),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    parent.say({"port": port})
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0.5)


def serve_with_threads(args: Namespace) -> None:
    """A pool thread writes each stream; one more thread a stream reads it."""

    def put_all(group: list[tuple[queue.SimpleQueue, list[bytes] | None]]) -> None:
        for stream, messages in group:
            stream.put(messages)

    work = bare.Pipeline(put_all, args.answers, args.sorts)

    def read(reports: Iterator[bytes], stream: queue.SimpleQueue) -> None:
        try:
            for report in reports:
                work.put(stream, report)
        except Exception:
            # A stream that was cancelled ends with a bare Exception of grpcio's; the pipeline is told either way.
            pass
        finally:
            work.put(stream, None)

    def pipeline(reports: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        stream: queue.SimpleQueue[list[bytes] | None] = queue.SimpleQueue()
        context.add_callback(lambda: stream.put(None))
        threading.Thread(target=read, args=(reports, stream), daemon=True).start()
        while (messages := stream.get()) is not None:
            yield from messages

    def echo(reports: Iterator[bytes], _: object) -> Iterator[bytes]:
        for report in reports:
            yield from bare.answers(report, args.answers)

    def gathered(reports: Iterator[bytes], _: object) -> Iterator[bytes]:
        for report in reports:
            yield bare.gathered_answer(report, args.answers)

    def unary(report: bytes, _: object) -> bytes:
        return bare.answers(report, [sum(args.answers)])[0]

    server = grpc.server(ThreadPoolExecutor(80), options=bare.OPTIONS)
    server.add_generic_rpc_handlers((handlers(echo, gathered, pipeline, unary),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    parent.say({"port": port})
    sys.stdin.read()
    server.stop(0.5).wait(5)


def main() -> None:
    parser = parent.parser()
    parser.add_argument("--stack", choices=("asyncio", "threads"), default="asyncio")
    parser.add_argument(
        "--answers", type=int, nargs="+", required=True, help="bytes of each message of an answer"
    )
    parser.add_argument("--sorts", type=int, default=0, help="work of the pipeline for each report")
    args = parser.parse_args()
    parent.live_for(args.life)
    if args.stack == "asyncio":
        asyncio.run(serve_with_asyncio(args))
    else:
        serve_with_threads(args)


if __name__ == "__main__":
    main()
