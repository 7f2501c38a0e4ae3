from vfx_export.labels import imagenet1k, kinetics400


def test_kinetics400_is_400_names_in_alphabetical_order():
    names = kinetics400()
    assert len(names) == len(set(names)) == 400
    # Plain code-point order: "passing American football" stays before "peeling apples" either way.
    assert list(names) == sorted(names)
    assert all(name == name.strip() and name.isascii() and "_" not in name for name in names)


def test_kinetics400_indices_that_others_publish():
    names = kinetics400()
    known = {
        0: "abseiling",
        5: "archery",
        31: "bowling",
        166: "javelin throw",
        198: "mopping floor",
        208: "passing American football (in game)",
        241: "playing piano",
        253: "pole vault",
        312: "skydiving",
        346: "tai chi",
        399: "zumba",
    }
    assert {index: names[index] for index in known} == known


def test_imagenet_indices_that_others_publish():
    names = imagenet1k()
    assert len(names) == 1000
    # The bird and the machine.
    assert {name for name in names if names.count(name) > 1} == {"crane"}
    assert all(name == name.strip() and name.isascii() and "_" not in name for name in names)
    known = {
        0: "tench, Tinca tinca",
        207: "golden retriever",
        281: "tabby, tabby cat",
        463: "bucket, pail",
        701: "parachute, chute",
        999: "toilet tissue, toilet paper, bathroom tissue",
    }
    assert {index: names[index] for index in known} == known
