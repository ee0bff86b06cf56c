"""What models inherit to be saved in a folder and pushed to the hub."""

import tempfile
from pathlib import Path

from huggingface_hub import HfApi
from torch import nn

from vmae_lab.models.checkpoints.saving import Layout, save_checkpoint
from vmae_lab.models.config import ModelConfig


class Pretrained(nn.Module):
    """A model that can say what it is."""

    @property
    def config(self) -> ModelConfig:
        """What is needed to build it anew."""
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path, layout: Layout = "vmae_lab", story: str = "") -> Path:
        """Write the model into a folder: weights, config, and a card with `story` (Markdown: how it was trained).

        `layout`: ours, `transformers` (VideoMAEForPreTraining or VideoMAEForVideoClassification), `official` (a .pth file for
        the paper's code), `remote_code` (the V2 models on the hub). Raises CheckpointError where the layout cannot hold the
        model, StorageError where the folder cannot be written.
        """
        return save_checkpoint(self.state_dict(), self.config, Path(folder), layout, story)

    def push_to_hub(self, repository: str, layout: Layout = "vmae_lab", story: str = "", private: bool = True) -> str:
        """Put such a folder on the hub, as `owner/name`; needs a login there (`hf auth login`). Returns its address.

        Raises what huggingface_hub does.
        """
        api = HfApi()
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, layout, story)
            address = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"Model in the layout '{layout}'")
        return str(address)
