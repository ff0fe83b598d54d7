# The workflow and its exact environment. Not built in CI; a test checks what it names.
#
#   docker build -t persona-collapse .                          CPU
#   docker build -t persona-collapse --build-arg GPU=1 .        with vLLM, for NVIDIA GPUs
#   docker run --rm -v "$PWD/results:/project/results" persona-collapse --cores all
#
# On a cluster: apptainer build persona-collapse.sif docker-daemon://persona-collapse:latest
#
# Nobody has published an image, so no rule names one (`container:`). `snakemake --containerize` prints another
# recipe: the conda environments of --use-conda in one image, without Snakemake (it asks conda, so have it).
FROM python:3.11-slim

# vLLM compiles kernels when it starts; nothing else here needs a compiler.
ARG GPU=0
RUN if [ "$GPU" = 1 ]; then \
      apt-get update && apt-get install -y --no-install-recommends gcc g++ libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi

WORKDIR /project
COPY requirements.lock requirements-torch.lock ./
COPY envs/generate.yaml envs/generate.yaml
# The locks first, whole; vLLM's own pins on top may not change them.
RUN pip install --no-cache-dir --no-deps -r requirements.lock \
 && pip install --no-cache-dir -r requirements-torch.lock \
 && if [ "$GPU" = 1 ]; then \
      pip freeze > locked.txt \
      && pip install --no-cache-dir -c locked.txt "$(grep -o 'vllm==[0-9.]*' envs/generate.yaml)"; \
    fi

COPY Snakefile ./
COPY config config
COPY envs envs
COPY workflow workflow
RUN ln -s workflow/profiles profiles

# Caches of libraries and, where the container is read-only but for a bind mount, the home folder.
ENV HOME=/tmp PYTHONUNBUFFERED=1
ENTRYPOINT ["snakemake"]
CMD ["--cores", "all"]
