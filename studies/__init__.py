"""The studies of docs/study.md; each is one command (`run.sh`)."""
