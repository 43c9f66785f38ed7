"""The version of what the warp engine draws, also for those who load no engine."""

MODEL_VERSION = "2"  # raised whenever its pictures change
