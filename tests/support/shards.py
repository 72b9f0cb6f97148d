"""Small webdatasets of digits, written for tests."""
import io
import json
import tarfile

from vmamba.data import BundledDataset


def write_shards(root, splits):
    """Writes shards and their `_info.json`.

    Args:
        root: folder that exists.
        splits: by the name of the split, how many images each shard has. Image n of a split has label n.
    """
    digits, info = BundledDataset("digits", "validation"), {}
    for split, lengths in splits.items():
        names, number = [f"{split}-{shard}.tar" for shard in range(len(lengths))], 0
        for name, length in zip(names, lengths, strict=True):
            with tarfile.open(root / name, "w") as file:
                for _ in range(length):
                    buffer = io.BytesIO()
                    digits[number][0].save(buffer, "png")
                    for ending, data in (("png", buffer.getvalue()), ("cls", str(number).encode())):
                        member = tarfile.TarInfo(f"{number:05}.{ending}")
                        member.size = len(data)
                        file.addfile(member, io.BytesIO(data))
                    number += 1
        info[split] = {"name": split, "filenames": names, "shard_lengths": lengths, "num_samples": number}
    (root / "_info.json").write_text(json.dumps({"splits": info}))
