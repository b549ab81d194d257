"""The rows of ``truetune demo``: everyday requests, each answered by one command, a line of JSON.

Held-out rows use sentence frames and open-class values (people, items, timer labels, amounts, tasks, messages,
genres, devices) that are absent from training; the words of those values are new too, save for function words
such as "the" or "my". They share with training the six actions and the closed-class values (list names, units,
days, rooms). A score on them says that a model learned the form, and that it copies words it was not trained on;
it says nothing about requests of another kind.
"""

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

T = TypeVar("T")
Part = Literal["train", "held_out"]


@dataclass(frozen=True, slots=True)
class DemoRows:
    """Rows in instruction form: ``instruction`` is a request, ``output`` its command as one line of JSON."""

    train: tuple[dict[str, str], ...]
    held_out: tuple[dict[str, str], ...]


@dataclass(frozen=True, slots=True)
class Values:
    """What may fill a slot."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Intent:
    """An action, the slots of its command in the order of the JSON keys, and the sentences that ask for it."""

    action: str
    slots: Mapping[str, Values]
    frames: tuple[str, ...]
    held_out_frames: tuple[str, ...]

    def choices(self, part: Part) -> tuple[tuple[str, ...], ...]:
        """The frames of a part, then the values of each slot."""
        if part == "train":
            return self.frames, *(values.train for values in self.slots.values())
        return self.held_out_frames, *(values.held_out for values in self.slots.values())

    def row(self, frame: str, *values: str) -> dict[str, str]:
        filled = dict(zip(self.slots, values, strict=True))
        return {"instruction": frame.format_map(filled), "output": json.dumps({"action": self.action, **filled})}


def _open(train: str, held_out: str) -> Values:
    return Values(tuple(train.split(", ")), tuple(held_out.split(", ")))


def _closed(shared: str) -> Values:
    return _open(shared, shared)


LISTS = _closed("shopping, packing, party, holiday, camping")
UNITS = _closed("seconds, minutes")
DAYS = _closed("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
ROOMS = _closed("kitchen, bedroom, bathroom, office, garage, hallway")
PEOPLE = _open(
    "Anna, Ben, Carlos, Diana, Emma, Frank, Grace, Henry, Isabel, Jack, Karen, Leo, Maria, Nathan, Olivia, "
    "Peter, Rachel, Sam, Teresa, Victor, Wendy, Alice, Brian, Claire, David, Elena, George, Hannah, Ivan, "
    "Julia, Kevin, Laura, Martin, Nina, Oscar, Paula, Robert, Sarah, Thomas, Zoe, Priya, Yusuf, Ingrid, "
    "Chloe, Mom, Dad, Grandma, Mr Brown, Mrs Green, Aunt Jane",
    "Daniel, Simon, Michael, Arthur, Edward, Luke, Rose, Lucy, Helen, Linda, Amy, Philip, Uncle Joe, Ms Clark",
)
ITEMS = _open(
    "milk, eggs, bread, butter, cheese, apples, bananas, onions, carrots, potatoes, spinach, salmon, coffee, "
    "green tea, sugar, flour, salt, yogurt, orange juice, plum jam, dish soap, paper towels, toothpaste, "
    "shampoo, batteries, light bulbs, trash bags, cat food, socks, sunscreen, umbrellas, camera, headphones, "
    "passport, water bottle, notebooks, pencils, envelopes, candles, balloons, ice cream, popcorn, "
    "chocolate, sleeping mat, rain jacket, wool hat, phone charger, matches, rope, first aid kit, crackers, "
    "lemons, red wine, frozen peas, swimsuit, sunglasses, map, boots",
    "beans, corn, honey, garlic, tomatoes, olive oil, flowers, blueberries, seeds, nuts, pepper, cookies, "
    "glasses, board games, hand lotion, cards",
)
LABELS = _open(
    "rice, eggs, oven, laundry, soup, tea, bread, nap, workout, break, cake, potatoes, chicken, meeting, "
    "shower, homework, roast, steak, muffins, sauce, pie, speech, stew, piano practice, car wash, salad, "
    "dough, sauna, quiz, swim, bike ride, parking, glue, broth, brownies, pancakes, grill, plank, "
    "meditation, breakfast, hair dye, face mask, spelling test, ice pack, lasagna",
    "pasta, pizza, fish, exam, bath, race, interview, dance class, reading, turkey, noodles, walnuts",
)
AMOUNTS = _open(
    "2, 3, 4, 5, 6, 8, 9, 10, 12, 14, 15, 16, 18, 20, 22, 24, 28, 30, 35, 36, 40, 42, 45, 48, 50, 55, 60, 70, 80, 90",
    "7, 11, 13, 17, 19, 25, 32, 38, 44, 52, 58, 75",
)
TASKS = _open(
    "water the plants, feed the cat, pay the rent, call the bank, clean the fridge, book a flight, "
    "wash the car, buy stamps, send the invoice, walk the dog, renew my passport, charge the camera, "
    "empty the trash, mow the lawn, iron my shirt, read the report, back up the laptop, sign the contract, "
    "order new tires, paint the fence, visit the dentist, fix the bike, change the sheets, cancel the gym, "
    "check the mail, bake a cake, pack my bag, sweep the porch, print the tickets, return the books, "
    "study for the test, lock the shed, grease the hinges, sharpen the knives, sort the photos, "
    "plan the menu, email the teacher, take my vitamins, clear the gutters, weigh the luggage, "
    "tune the guitar, scrub the tub, unpack the boxes, test the alarm, cut the grass",
    "dust the stairs, collect the parcel, update my resume, hire a plumber, trim the hedge, polish my shoes, "
    "submit the form, wipe the windows, choose a gift, wrap the vase, replace the filter, frame the picture",
)
MESSAGES = _open(
    "dinner is ready, I am running late, the train is delayed, we need more milk, the meeting is over, "
    "I found the keys, the baby is asleep, the show was great, the car is fixed, I am at home, "
    "the doctor called, we won the game, the bus is full, I love the photos, it is snowing here, "
    "the door is open, I passed the test, the cake looks amazing, see you soon, the plan has changed, "
    "I will be there, the shop is closed, good luck, happy birthday, the report is done, we are outside, "
    "my phone is dead, the flight landed, thanks for everything, the kids are hungry, I need a ride, "
    "the water is off, he is still sleeping, the package came, it begins at noon, the power is back, "
    "they said yes, we missed the ferry, the museum was crowded, I bought bread, rehearsal is cancelled, "
    "the roof is leaking, she has a fever, welcome back, lunch is on me",
    "the parcel arrived, I lost my wallet, we are almost there, the concert was fun, I feel great, "
    "the pool is warm, the guests are here, I got the job, school starts early, the pizza is cold, "
    "the road is clear, traffic is bad",
)
GENRES = _open(
    "jazz, rock, blues, country, techno, opera, soul, reggae, disco, folk, hip hop, classical, ambient, "
    "salsa, punk, gospel, funk, hard rock, soft piano, love songs, movie themes, rain sounds, house, swing, "
    "acoustic guitar, lullabies, indie, marching bands, electronic, tango, trance, polka, flute, harp, "
    "trumpet, synth, bossa nova, film scores, old hits, bird calls, string quartets, waltzes, drum loops",
    "pop, rap, metal, violin, bluegrass, samba, ocean waves, ballads, choir, organ solos, wind chimes, lounge",
)
DEVICES = _open(
    "lamp, fan, heater, radio, speaker, television, printer, coffee maker, kettle, oven, ceiling light, "
    "computer, air conditioner, humidifier, washing machine, camera, alarm, charger, projector, toaster, "
    "vacuum, night light, router, desk lamp, mixer, boiler, stove, furnace, tablet, laptop, lantern, stereo, "
    "shredder, doorbell, sewing machine, record player, water pump, game console, scanner, fireplace, "
    "treadmill, rice cooker, aquarium, jukebox, hair dryer, string lights",
    "monitor, screen, clock, robot, server, display, telephone, keyboard, microphone, dishwasher, bed warmer",
)

INTENTS = (
    Intent(
        "add_to_list",
        slots={"item": ITEMS, "list": LISTS},
        frames=(
            "Add {item} to my {list} list.",
            "Please put {item} on the {list} list.",
            "Can you add {item} to the {list} list?",
            "We need {item}, so put it on the {list} list.",
            "I want {item} on my {list} list.",
            "On the {list} list, write {item}.",
            "My {list} list is missing {item}, please add it.",
            "Could you note {item} on our {list} list?",
            "For the {list} list: {item}.",
        ),
        held_out_frames=(
            "Would you put {item} on my {list} list, please?",
            "Our {list} list should include {item}.",
            "Write {item} down on the {list} list.",
        ),
    ),
    Intent(
        "set_timer",
        slots={"label": LABELS, "amount": AMOUNTS, "unit": UNITS},
        frames=(
            "Set a timer for the {label} for {amount} {unit}.",
            "Start a {label} timer, {amount} {unit} please.",
            "Can you time the {label} for {amount} {unit}?",
            "I need a timer of {amount} {unit} for the {label}.",
            "Set the {label} timer to {amount} {unit}.",
            "Please count down {amount} {unit} for the {label}.",
            "The {label} takes {amount} {unit}, start a timer.",
            "Timer for the {label}: {amount} {unit}.",
            "Let me know when {amount} {unit} are up for the {label}.",
        ),
        held_out_frames=(
            "Please set a {label} timer for {amount} {unit}.",
            "Could you start a timer of {amount} {unit} for the {label}?",
            "I would like a {label} timer of {amount} {unit}.",
        ),
    ),
    Intent(
        "remind",
        slots={"task": TASKS, "day": DAYS},
        frames=(
            "Remind me to {task} on {day}.",
            "On {day}, remind me to {task}.",
            "Can you remind me on {day} to {task}?",
            "I have to {task} on {day}, please remind me.",
            "Please set a reminder for {day} to {task}.",
            "Don't let me forget to {task} on {day}.",
            "Reminder for {day}: {task}.",
            "I must {task} this {day}, so remind me.",
            "Make sure I remember to {task} on {day}.",
        ),
        held_out_frames=(
            "Could you remind me to {task} this {day}?",
            "On {day} I need to {task}, remind me please.",
            "Set a reminder to {task} on {day}.",
        ),
    ),
    Intent(
        "send_message",
        slots={"to": PEOPLE, "text": MESSAGES},
        frames=(
            "Tell {to} that {text}.",
            "Send {to} a message: {text}.",
            "Text {to} saying {text}.",
            "Please write to {to}: {text}.",
            "Can you text {to} the words {text}?",
            "Let {to} know: {text}.",
            "Message {to} and say {text}.",
            "I want to send {to} this: {text}.",
            "A message for {to}: {text}.",
        ),
        held_out_frames=(
            "Please send a message to {to} saying {text}.",
            "Could you tell {to} that {text}?",
            "Send this to {to}: {text}.",
        ),
    ),
    Intent(
        "play_music",
        slots={"genre": GENRES, "room": ROOMS},
        frames=(
            "Play {genre} in the {room}.",
            "Put on some {genre} in the {room}.",
            "Can we have {genre} in the {room}?",
            "I want to hear {genre} in the {room}.",
            "Please play some {genre} in my {room}.",
            "Start playing {genre} in the {room}.",
            "In the {room}, play {genre}.",
            "How about some {genre} in the {room}?",
            "Music for the {room}: {genre}.",
        ),
        held_out_frames=(
            "Could you play {genre} in the {room}, please?",
            "I feel like listening to {genre} in the {room}.",
            "Would you put on {genre} in the {room}?",
        ),
    ),
    Intent(
        "turn_on",
        slots={"device": DEVICES, "room": ROOMS},
        frames=(
            "Turn on the {device} in the {room}.",
            "Please switch on the {device} in the {room}.",
            "Can you turn the {device} in the {room} on?",
            "Switch the {device} on in the {room}.",
            "I need the {device} in the {room} turned on.",
            "In the {room}, turn on the {device}.",
            "The {device} in the {room} should be on.",
            "Start the {device} in the {room}.",
            "Get the {device} in the {room} running.",
        ),
        held_out_frames=(
            "Could you switch on the {device} in the {room}?",
            "Have the {device} in the {room} turned on, please.",
            "I want the {device} in the {room} switched on.",
        ),
    ),
)


def demo_rows(*, seed: int = 42, train_rows: int = 300, held_out_rows: int = 40) -> DemoRows:
    """The same rows for a seed on every Python; no request occurs twice, and the actions share them evenly.

    Raises ValueError when an action has fewer distinct requests than its share.
    """
    rng = random.Random(seed)
    return DemoRows(train=_draw(rng, "train", train_rows), held_out=_draw(rng, "held_out", held_out_rows))


def _draw(rng: random.Random, part: Part, count: int) -> tuple[dict[str, str], ...]:
    shares = [(count + position) // len(INTENTS) for position in range(len(INTENTS))]
    rows = [row for intent, share in zip(INTENTS, shares, strict=True) for row in _ask(rng, intent, part, share)]
    return tuple(_shuffled(rng, rows))


def _ask(rng: random.Random, intent: Intent, part: Part, count: int) -> list[dict[str, str]]:
    """Distinct requests for one action, in which every frame and value comes up about equally often."""
    choices = intent.choices(part)
    distinct = math.prod(map(len, choices))
    if count > distinct:
        raise ValueError(f"{intent.action} has {distinct} distinct {part} requests (asked for {count})")
    decks = [_reshuffled_forever(rng, phrases) for phrases in choices]
    rows: dict[str, dict[str, str]] = {}
    while len(rows) < count:
        row = intent.row(*map(next, decks))
        rows.setdefault(row["instruction"], row)
    return list(rows.values())


def _reshuffled_forever(rng: random.Random, values: Sequence[T]) -> Iterator[T]:
    while True:
        yield from _shuffled(rng, values)


def _shuffled(rng: random.Random, values: Sequence[T]) -> list[T]:
    # Python promises to keep the sequence of random() from version to version, but not that of shuffle().
    return sorted(values, key=lambda _: rng.random())
