# A trainer of the example: the client, torch, and trainer_example. From the root of the repository:
#
#   docker build -f deploy/examples/trainer.Dockerfile -t steelyard-trainer .
#
# A base that has torch already, as those of GPU makers do, keeps its own.
ARG BASE_IMAGE=docker.io/library/python:3.13-slim-bookworm
# checkov:skip=CKV_DOCKER_7: the base is an argument, and its default has a version
# checkov:skip=CKV_DOCKER_2: a job ends or fails; nobody asks a trainer for its health
FROM ${BASE_IMAGE}
COPY pyproject.toml README.md LICENSE /src/
COPY client /src/client
COPY server /src/server
RUN python3 -m pip install --no-cache-dir "/src[torch]"
COPY trainer_example /opt/trainer
# A new volume that is mounted there takes over its owner.
RUN mkdir /out && chown 65532:65532 /out
USER 65532:65532
# The text that the example learns is the standard library of its Python.
ENTRYPOINT ["torchrun"]
