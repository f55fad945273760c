"""Which classes of ImageNet-1k show which category of COCO: `python benchmarks/coco_imagenet.py` prints them by name.

A class stands here if nearly everything it names would be annotated as the category. Left out are parts (wing, space bar,
car wheel), things COCO has no category for, and false friends: ImageNet's "kite" (21) is a bird of prey, its "crane" (517)
no bird, its "mouse" the computer's and its "plane" (726) a carpenter's. COCO's giraffe, suitcase, frisbee, snowboard, kite,
baseball bat and glove, skateboard, surfboard, fork, carrot, donut, cake, scissors, toothbrush and fire hydrant have no
class.
"""

from __future__ import annotations

__all__ = ["CATEGORIES", "CATEGORY_OF"]

CATEGORIES: dict[str, tuple[int, ...]] = {
    "person": (981, 982, 983),  # ballplayer, groom, scuba diver
    "bicycle": (444, 671),
    "car": (436, 468, 511, 609, 627, 656, 661, 751, 817),
    "motorcycle": (665, 670),
    "airplane": (404, 895),
    "bus": (654, 779, 874),
    "train": (466, 547, 565, 705, 820, 829),
    "truck": (555, 569, 675, 717, 864, 867),
    "boat": (472, 484, 510, 554, 576, 625, 628, 724, 780, 814, 871, 914),
    "traffic light": (920,),
    "stop sign": (919,),  # street sign
    "parking meter": (704,),
    "bench": (703,),
    "bird": (*range(7, 25), *range(80, 101), *range(127, 147)),
    "cat": tuple(range(281, 286)),
    "dog": tuple(range(151, 269)),
    "horse": (339,),
    "sheep": (348, 349),
    "cow": (345,),
    "elephant": (101, 385, 386),
    "bear": tuple(range(294, 298)),
    "zebra": (340,),
    "backpack": (414,),
    "umbrella": (879,),
    "handbag": (748,),
    "tie": (457, 906),
    "skis": (795,),
    "sports ball": (429, 430, 522, 574, 722, 768, 805, 852, 890),
    "tennis racket": (752,),
    "bottle": (440, 720, 737, 898, 907),
    "wine glass": (572,),
    "cup": (441, 504, 647, 968),
    "knife": (499,),
    "spoon": (910,),
    "bowl": (659, 809),
    "banana": (954,),
    "apple": (948,),
    "sandwich": (933,),
    "orange": (950,),
    "broccoli": (937,),
    "hot dog": (934,),
    "pizza": (963,),
    "chair": (423, 559, 765),
    "couch": (831,),
    "potted plant": (738,),
    "bed": (564,),
    "dining table": (532,),
    "toilet": (861,),
    "tv": (664, 782, 851),
    "laptop": (620, 681),
    "mouse": (673,),
    "remote": (761,),
    "keyboard": (508,),
    "cell phone": (487,),
    "microwave": (651,),
    "oven": (827,),
    "toaster": (859,),
    "sink": (896,),
    "refrigerator": (760,),
    "book": (917, 921),
    "clock": (409, 530, 892),
    "vase": (883,),
    "teddy bear": (850,),
    "hair drier": (589,),
}
"""COCO category → classes of ImageNet-1k."""

CATEGORY_OF: dict[int, str] = {place: category for category, places in CATEGORIES.items() for place in places}
"""Class of ImageNet-1k → COCO category."""


if __name__ == "__main__":
    from vitral.base.labels import imagenet1k_labels

    for category, places in CATEGORIES.items():
        names = [f"{place} {imagenet1k_labels()[place].split(',')[0]}" for place in places]
        print(f"{category}: {', '.join(names)}")
