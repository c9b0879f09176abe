"""`driftloop watch` with a stand-in for Kubeflow: python watcher_process.py CONFIG PORT."""

import logging
import sys
from pathlib import Path

from watchers import KubeflowRunner

from streaming.assemble import run_watch
from streaming.logs import configure
from streaming.settings import load_settings

if __name__ == "__main__":
    configure(logging.INFO, as_json=False)
    run_watch(load_settings(Path(sys.argv[1])), runner=KubeflowRunner(int(sys.argv[2])))
