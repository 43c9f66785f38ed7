# The images of Dockerfile.gpu. `docker buildx bake` builds the default group, `docker buildx bake
# --print` shows what would be built; docs/images.md says which flavour runs on which card.
#
#   docker buildx bake                          CUDA 13 and CUDA 12.6, without weights
#   MODELS=embed docker buildx bake cu13        CUDA 13 with the weights inside
#   REGISTRY=ghcr.io/you/ docker buildx bake --push

variable "REGISTRY" { default = "" }
variable "TAG" { default = "latest" }
variable "BUILD_COMMIT" { default = "unknown" }
variable "BUILD_TIME" { default = "unknown" }
variable "BASE_IMAGE" { default = "python:3.11-slim-bookworm" }
# none: weights are fetched once into a volume; embed: those of WEIGHTS_LIST are in layers of their own.
variable "MODELS" {
  default = "none"
  validation {
    condition     = contains(["none", "embed"], MODELS)
    error_message = "MODELS must be none or embed."
  }
}

# The files, as scripts/weights_plan.py describes them, and the registry's limit for a layer.
variable "WEIGHTS_LIST" { default = "cluster/image/musetalk-v15.json" }
variable "LAYER_GB" { default = "10" }
# The SHA-256 of Salad's job queue worker; without it the image has no `salad-queue`.
variable "SALAD_QUEUE_SHA256" { default = "" }

group "default" { targets = ["cu13", "cu126"] }

target "worker" {
  dockerfile = "Dockerfile.gpu"
  target     = "worker"
  args = {
    BASE_IMAGE         = BASE_IMAGE
    MODELS             = MODELS
    WEIGHTS_LIST       = WEIGHTS_LIST
    LAYER_GB           = LAYER_GB
    SALAD_QUEUE_SHA256 = SALAD_QUEUE_SHA256
    BUILD_COMMIT       = BUILD_COMMIT
    BUILD_TIME         = BUILD_TIME
  }
  # Only the fetching of weights reads it, and it is in no layer.
  secret = ["type=env,id=hub_token,env=HUB_TOKEN"]
}

# Turing to Blackwell; drivers from 580 on.
target "cu13" {
  inherits  = ["worker"]
  platforms = ["linux/amd64"]
  args      = { TORCH_BUILD = "cu13", CUDA_REQUIRED = "13.0" }
  tags      = ["${REGISTRY}lipsync-worker:${TAG}-cu13"]
}

# Turing to Hopper; drivers from 525 on.
target "cu126" {
  inherits  = ["worker"]
  platforms = ["linux/amd64"]
  args      = { TORCH_BUILD = "cu126", CUDA_REQUIRED = "12.6" }
  tags      = ["${REGISTRY}lipsync-worker:${TAG}-cu126"]
}

# Without CUDA, for developers' machines with ARM processors.
target "cpu-arm64" {
  inherits  = ["worker"]
  platforms = ["linux/arm64"]
  args      = { TORCH_BUILD = "cpu", CUDA_REQUIRED = "0.0", SERVE_CONFIG = "serve_config.yaml" }
  tags      = ["${REGISTRY}lipsync-worker:${TAG}-cpu-arm64"]
}

# A node of one Ray cluster (docs/ray-cluster.md), with the weights inside.
target "cluster-node" {
  inherits = ["cu13"]
  target   = "cluster-node"
  args     = { MODELS = "embed" }
  tags     = ["${REGISTRY}lipsync-cluster-node:${TAG}-cu13"]
}
