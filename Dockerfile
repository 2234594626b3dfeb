# The book for whoever has Docker, and for JupyterHub. How to run it, and what raises its tier: docs/where-it-runs.md.
FROM python:3.12-slim-bookworm

# The name, number and home that JupyterHub expects. The book lies elsewhere: a volume may cover the home.
RUN useradd --uid 1000 --create-home --shell /bin/bash jovyan \
    && install --directory --owner=jovyan --group=jovyan /srv/book /srv/env
WORKDIR /srv/book

# What Binder gets too, and tini, which buries the processes of a kernel that was killed.
COPY binder/apt.txt /tmp/
# hadolint ignore=DL3008
RUN apt-get update \
    && sed --in-place '/^#/d' /tmp/apt.txt \
    && xargs --arg-file=/tmp/apt.txt apt-get install --yes --no-install-recommends tini \
    && rm -r /var/lib/apt/lists/* /tmp/apt.txt

# As a number: Kubernetes' runAsNonRoot takes no name.
USER 1000
ENV PATH=/srv/env/bin:$PATH SHELL=/bin/bash
COPY --chown=jovyan:jovyan . .
# JupyterHub: --build-arg EXTRA_PACKAGES="jupyterhub==5.*", the version of the hub.
ARG EXTRA_PACKAGES=""
# Word by word, so no quotes.
# hadolint ignore=SC2086
RUN python -m venv /srv/env \
    && pip install --no-cache-dir --requirement binder/requirements.txt ${EXTRA_PACKAGES} \
    && binder/postBuild

# All addresses inside the container, or `-p` reaches nobody; a token is needed, and printed with the address.
EXPOSE 8888
ENTRYPOINT ["tini", "--"]
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--port=8888", "--no-browser", \
    "--LabApp.default_url=/lab/tree/notebooks/00_introduction/01_welcome.ipynb"]
