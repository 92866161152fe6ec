# The server of `vitgraft serve`. torch comes from pip's own index, with CUDA; smaller, for processors alone, from torch's
# index of such wheels: --build-arg TORCH_INDEX="--index-url ADDRESS".
# docker build -t vitgraft . && docker run -p 8000:8000 -v "$PWD/bank:/bank" -e VITGRAFT_TOKEN vitgraft
FROM python:3.11-slim

ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 VITGRAFT_CACHE=/bank/weights HF_HOME=/bank/hub

WORKDIR /app
RUN pip install ${TORCH_INDEX} torch torchvision
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install '.[serve]'

RUN useradd --create-home bank && mkdir -p /bank && chown bank /bank
USER bank
VOLUME /bank
EXPOSE 8000
HEALTHCHECK CMD python -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=5)"
CMD ["vitgraft", "serve", "/bank/bank.yaml", "--host", "0.0.0.0"]
