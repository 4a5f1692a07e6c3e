"""A gRPC server that answers transfers without doing anything: what gRPC itself costs.

    python -m scripts.bench.echo

Prints its address and serves until its standard input ends. It speaks the real messages of the two
calls that matter, parses what a server must parse, and answers COMPLETED.
"""

import asyncio
import sys
from typing import Any

import grpc
import uvloop

from cluster import rpc
from cluster.packed import BODY_BYTES, RESULT
from doubloon.v1 import shard_service_pb2, types_pb2, wallet_service_pb2

TIME_US = 1_700_000_000_000_000  # as many digits as a real one


async def transfer(
    request: wallet_service_pb2.TransferRequest, _: Any
) -> wallet_service_pb2.TransferResponse:
    """Read the amount, and answer COMPLETED."""
    result = types_pb2.TransferResult(
        status=types_pb2.TRANSFER_STATUS_COMPLETED,
        time_us=TIME_US,
        source_balance_after_minor=request.transfer.amount_minor,
    )
    return wallet_service_pb2.TransferResponse(result=result)


async def execute_transfers(
    request: shard_service_pb2.ExecuteTransfersRequest, _: Any
) -> shard_service_pb2.ExecuteTransfersResponse:
    """Answer COMPLETED for each."""
    one = RESULT.pack(types_pb2.TRANSFER_STATUS_COMPLETED, 0, 0, 0, TIME_US, 1)
    count = len(request.bodies) // BODY_BYTES
    return shard_service_pb2.ExecuteTransfersResponse(results=one * count)


def handlers() -> tuple[grpc.GenericRpcHandler, ...]:
    """Return what the server serves."""
    return (
        grpc.method_handlers_generic_handler(
            "doubloon.v1.WalletService",
            {
                "Transfer": grpc.unary_unary_rpc_method_handler(
                    transfer,
                    wallet_service_pb2.TransferRequest.FromString,
                    wallet_service_pb2.TransferResponse.SerializeToString,
                )
            },
        ),
        grpc.method_handlers_generic_handler(
            "doubloon.v1.ShardService",
            {
                "ExecuteTransfers": grpc.unary_unary_rpc_method_handler(
                    execute_transfers,
                    shard_service_pb2.ExecuteTransfersRequest.FromString,
                    shard_service_pb2.ExecuteTransfersResponse.SerializeToString,
                )
            },
        ),
    )


async def serve() -> None:
    """Serve until the standard input ends."""
    server = await rpc.server(())
    server.grpc_server.add_generic_rpc_handlers(handlers())
    print(await server.serve("127.0.0.1:0"), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


if __name__ == "__main__":
    uvloop.run(serve())
