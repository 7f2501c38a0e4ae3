# Builds engines: torch, ONNX, TensorRT's builder. TensorRT comes from NVIDIA's index, at the runtime image's version.
FROM python:3.12.12-slim-bookworm AS wheel
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /src
RUN pip install --no-cache-dir build==1.6.1
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY export export
COPY engines engines
COPY runtime runtime
RUN python -m build --wheel --outdir /wheels

FROM python:3.12.12-slim-bookworm
ARG TENSORRT=11.4.0.106
ENV PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY scripts/constraints.txt /tmp/constraints.txt
COPY --from=wheel /wheels /tmp/wheels
RUN pip install --no-cache-dir -c /tmp/constraints.txt "$(echo /tmp/wheels/vfx-*.whl)[export,tensorrt]" \
    && pip install --no-cache-dir --extra-index-url https://pypi.nvidia.com "tensorrt-cu13==${TENSORRT}" \
    && rm -rf /tmp/wheels /tmp/constraints.txt \
    && useradd --create-home --uid 1000 vfx \
    && install -d -o vfx -g vfx /engines /home/vfx/.cache/vfx
USER 1000:1000
VOLUME ["/engines", "/home/vfx/.cache/vfx"]
WORKDIR /engines
ENTRYPOINT ["vfx-export"]
CMD ["--help"]
