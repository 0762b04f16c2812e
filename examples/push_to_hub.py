"""Uploads the weights of a run to the Hugging Face Hub, with a model card, into a repository that is private at first.

pip install "ssd-ext[hub,safetensors]"; hf auth login
python examples/push_to_hub.py run owner/name        # then: ssd detect photos/ --weights hf://owner/name --out found
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData

from ssd.cli import main as ssd
from ssd.training.records import METRICS


def make_card(run: dict, repo: str) -> ModelCard:
    """The card, from metrics.json: network, mAP and AP of the classes, and not where the data is."""
    split = "validation" if run["test_mAP"] is None else "test"
    value, ap = (run["best_mAP"], "best_ap") if run["test_mAP"] is None else (run["test_mAP"], "test_ap")
    result = EvalResult("object-detection", "custom", f"{split} pictures", "map", value, metric_name=run["metric"])
    about = {"library_name": "ssd-ext", "pipeline_tag": "object-detection", "model_name": repo.split("/")[1]}
    data = ModelCardData(**about, eval_results=[] if value is None else [result])
    rows = "\n".join(f"| {row['name']} | {'' if row[ap] is None else round(row[ap], 4)} |" for row in run["classes"])
    text = f"`{run['network']}` at {run['size']} pixels, {run['epochs']} epochs. {run['metric']} ({split}): {value}."
    use = f"```\nssd detect photos/ --weights hf://{repo} --out found\n```"
    return ModelCard(f"---\n{data}\n---\n\n# {repo}\n\n{text}\n\n| class | AP |\n|---|---|\n{rows}\n\n{use}\n")


def main(folder: str, repo: str) -> None:
    card = make_card(json.loads((Path(folder) / METRICS).read_text(encoding="utf-8")), repo)
    with TemporaryDirectory() as made:
        if ssd(["convert", str(Path(folder) / "best.pt"), str(Path(made) / "best.safetensors")]):
            sys.exit(2)  # ssd has printed why
        card.save(Path(made) / "README.md")
        print(HfApi().create_repo(repo, private=True, exist_ok=True))
        HfApi().upload_folder(repo_id=repo, folder_path=made)  # one commit


if __name__ == "__main__":
    main(*sys.argv[1:3])
