"""Sort the pictures of an unpacked `emoji-datasource-google` (npm, MIT) into data/images/train and data/images/test.

    python make_images.py package

Ten classes: the package's categories, with hands and parts of the body as a class of their own. Every fifth picture
of a class, in the order of their code points, is for the test.
"""

import json
import shutil
import sys
from collections import defaultdict
from pathlib import Path

package = Path(sys.argv[1])
classes = defaultdict(list)
for emoji in json.loads((package / "emoji.json").read_text(encoding="utf-8")):
    is_hand = emoji["subcategory"].startswith(("hand", "body-parts"))
    name = "Hands" if is_hand else emoji["category"].split()[0]
    if name != "Component" and emoji["has_img_google"]:
        classes[name].append(emoji["image"])
for name, images in classes.items():
    for number, image in enumerate(sorted(images)):
        folder = Path("data/images") / ("test" if number % 5 == 4 else "train") / name.lower()
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(package / "img" / "google" / "64" / image, folder / image)
