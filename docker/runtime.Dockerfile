# Runs engines, and nothing else: no torch, no compiler, no TensorRT builder. PyAV's FFmpeg decodes on NVDEC.
FROM python:3.12.12-slim-bookworm AS wheel
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /src
RUN pip install --no-cache-dir build==1.6.1
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY export export
COPY engines engines
COPY runtime runtime
RUN python -m build --wheel --outdir /wheels

# "full" runs every plan of its version, "lean" only those built with --version-compatible, in a tenth of the room.
FROM python:3.12.12-slim-bookworm
ARG TENSORRT=11.4.0.106
ARG RUNTIME=full
ENV PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
COPY scripts/constraints.txt /tmp/constraints.txt
COPY --from=wheel /wheels /tmp/wheels
RUN pip install --no-cache-dir -c /tmp/constraints.txt "$(echo /tmp/wheels/vfx-*.whl)[gpu,hdf5]" \
    && if [ "${RUNTIME}" = lean ]; then \
        pip install --no-cache-dir \
            "tensorrt-lean-cu13-bindings==${TENSORRT}" "tensorrt-lean-cu13-libs==${TENSORRT}"; \
    else \
        pip install --no-cache-dir --extra-index-url https://pypi.nvidia.com "tensorrt-cu13==${TENSORRT}"; \
    fi \
    && rm -rf /tmp/wheels /tmp/constraints.txt \
    && useradd --create-home --uid 1000 vfx \
    && install -d -o vfx -g vfx /features /home/vfx/.cache/vfx
USER 1000:1000
VOLUME ["/features", "/home/vfx/.cache/vfx"]
WORKDIR /features
ENTRYPOINT ["vfx-run"]
CMD ["--help"]
