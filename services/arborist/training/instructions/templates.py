"""Instruction records made from the project's own templates and word lists.

Each generator takes a random source and returns one (prompt, response). No eval prompt is used.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from arborist.training.instructions import content as c

Pair = tuple[str, str]
Generator = Callable[[random.Random], Pair]


def capitalised(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def numbered(items: list[str]) -> str:
    """Lines "1. …", "2. …"."""
    return "\n".join(f"{number}. {item}" for number, item in enumerate(items, start=1))


def joined(items: list[str]) -> str:
    """A list in a sentence: "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


COUNTS = {2: "two", 3: "three", 4: "four", 5: "five"}


def concept(rng: random.Random) -> Pair:
    """Explain, define or describe a concept."""
    name = rng.choice(list(c.CONCEPTS))
    what, why, example = c.CONCEPTS[name]
    title = capitalised(name)
    ask = rng.choice(
        [
            f"Explain {name}.",
            f"What is {name}?",
            f"Explain the concept of {name}.",
            f"Describe {name} in simple words.",
            f"Define {name}.",
            f"Tell me about {name}.",
            f"Explain {name} to a child.",
            f"Write a short paragraph about {name}.",
            f"Give an example of {name} and explain it.",
            f"What does {name} mean?",
            f"Why is {name} important?",
            f"Can you explain how {name} works?",
            f"Write an introduction to {name} for beginners.",
            f"Summarize the main idea of {name}.",
        ]
    )
    if ask.startswith("Why"):
        return ask, f"{title} is important because {why}. For example, {example}."
    if ask.startswith(("Define", "What does")):
        return ask, f"{title} is {what}."
    return ask, f"{title} is {what}. It is important because {why}. For example, {example}."


def advice(rng: random.Random) -> Pair:
    """A numbered list of tips."""
    goal, doing = rng.choice(list(c.ADVICE))
    tips = c.ADVICE[goal, doing]
    count = rng.choice([3, 3, 4, 5])
    chosen = rng.sample(tips, count)
    number = rng.choice([str(count), COUNTS[count]])
    ask, lead = rng.choice(
        [
            (f"Give me {number} tips to {goal}.", f"Here are {COUNTS[count]} tips to {goal}:"),
            (f"List {number} ways to {goal}.", f"Here are {COUNTS[count]} ways to {goal}:"),
            (
                f"Suggest {number} ideas for {doing}.",
                f"Here are {COUNTS[count]} ideas for {doing}:",
            ),
            (f"How can I {goal}?", f"Here are {COUNTS[count]} ways to {goal}:"),
            (
                f"What are the best ways to {goal}?",
                f"Here are {COUNTS[count]} good ways to {goal}:",
            ),
            (
                f"Name {number} things that help with {doing}.",
                f"Here are {COUNTS[count]} things that help with {doing}:",
            ),
            (f"Write a guide to {doing}.", f"Here is a short guide to {doing}:"),
            (
                f"Brainstorm {number} strategies for {doing}.",
                f"Here are {COUNTS[count]} strategies for {doing}:",
            ),
            (
                f"Create a list of steps for someone who wants to {goal}.",
                f"Here are the steps to {goal}:",
            ),
            (
                f"Write an outline for a blog post about {doing}.",
                f"Here is an outline for a blog post about {doing}:",
            ),
        ]
    )
    style = rng.random()
    if style < 0.6:
        lines = [f"{head}. {body}" for head, body in chosen]
    elif style < 0.8:
        lines = [head for head, _ in chosen]
    else:
        lines = [body for _, body in chosen]
    return ask, f"{lead}\n\n{numbered(lines)}"


def country(rng: random.Random) -> Pair:
    """A fact about a country, in a full sentence."""
    name = rng.choice(list(c.COUNTRIES))
    capital, continent, language, money = c.COUNTRIES[name]
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(
            [f"What is the capital of {name}?", f"Name the capital city of {name}."]
        ), f"The capital of {name} is {capital}."
    if kind == 1:
        return rng.choice(
            [f"Where is {name} located?", f"On which continent is {name}?"]
        ), f"{capitalised(name)} is located in {continent}."
    if kind == 2:
        return (f"What language do people speak in {name}?", f"People in {name} speak {language}.")
    if kind == 3:
        return f"What is the currency of {name}?", f"The currency of {name} is {money}."
    if kind == 4:
        return (f"Where is {capital}?", f"{capital} is the capital of {name}, in {continent}.")
    return (
        rng.choice([f"Tell me something about {name}.", f"Write a short fact sheet on {name}."]),
        f"{capitalised(name)} is a country in {continent}. Its capital is {capital}. "
        f"People there speak {language}, and the currency is {money}.",
    )


def element(rng: random.Random) -> Pair:
    """Symbol or atomic number of an element."""
    name = rng.choice(list(c.ELEMENTS))
    symbol, number = c.ELEMENTS[name]
    return rng.choice(
        [
            (
                f"What is the chemical symbol for {name}?",
                f"The chemical symbol for {name} is {symbol}.",
            ),
            (f"What is the atomic number of {name}?", f"The atomic number of {name} is {number}."),
            (
                f"Which element has the symbol {symbol}?",
                f"The element with the symbol {symbol} is {name}.",
            ),
        ]
    )


def story(rng: random.Random) -> Pair:
    """A very short story."""
    hero, place, thing = rng.choice(c.CHARACTERS), rng.choice(c.PLACES), rng.choice(c.OBJECTS)
    name = rng.choice(c.NAMES)
    theme = rng.choice(c.THEMES)
    ask = rng.choice(
        [
            f"Write a short story about {hero}.",
            f"Tell me a story about {hero} and {thing}.",
            f"Write a story about {theme}.",
            f"Write the opening of a story about {hero} who finds {thing}.",
            f"Create a short story set in {place}.",
            f"Write a creative story about {thing}.",
            f"Generate a story that begins with {hero} in {place}.",
            f"Write a fairy tale about {theme} and {hero}.",
        ]
    )
    first = f"Once upon a time, there was {hero} named {name} who lived in {place}."
    second = rng.choice(
        [
            f"One morning, {name} found {thing} by the door.",
            f"Every day, {name} dreamed about {theme}.",
            f"One evening, {name} heard a soft voice calling from outside.",
            f"{name} loved to think about {theme}, but nobody else understood why.",
        ]
    )
    third = rng.choice(
        [
            f"{name} was afraid at first, but decided to follow the path into the unknown.",
            f"{name} showed it to a friend, and together they began a long journey.",
            f"{name} kept it a secret for many days and wondered what it meant.",
        ]
    )
    last = rng.choice(
        [
            f"In the end, {name} came home and learned that {theme} was worth more than gold.",
            f"When {name} finally returned, everyone in the village was waiting with a smile.",
            f"From that day on, {name} was never alone again.",
        ]
    )
    return ask, " ".join([first, second, third, last])


def poem(rng: random.Random) -> Pair:
    """Four plain lines about a theme."""
    theme = rng.choice(c.THEMES)
    ask = rng.choice(
        [
            f"Write a poem about {theme}.",
            f"Compose a short poem on {theme}.",
            f"Write a haiku about {theme}.",
            f"Write four lines of verse about {theme}.",
            f"Write a song about {theme}.",
        ]
    )
    title = capitalised(theme)
    if "haiku" in ask:
        return ask, f"{title} is here,\nquiet as a falling leaf,\nand the world is still."
    rhyme = rng.choice(
        [
            (
                "comes softly in the night",
                "and fills the quiet world with light",
                "It sings to those who stop and hear",
                "and brings the things we love so near",
            ),
            (
                "is waiting at the door",
                "it was never so clear before",
                "We walk together, hand in hand",
                "across the green and sleeping land",
            ),
            (
                "will stay when all is gone",
                "and lead us to the early dawn",
                "It tells us not to be afraid",
                "of all the long way we have made",
            ),
        ]
    )
    return ask, f"{title} {rhyme[0]},\n{rhyme[1]}.\n{rhyme[2]},\n{rhyme[3]}."


def email(rng: random.Random) -> Pair:
    """A short polite email."""
    subject, to, name = rng.choice(c.SUBJECTS), rng.choice(c.RECIPIENTS), rng.choice(c.NAMES)
    ask = rng.choice(
        [
            f"Write an email to {to} about {subject}.",
            f"Draft a short email to {to} about {subject}.",
            f"Compose a polite message to {to} asking about {subject}.",
            f"Help me write a letter to {to} about {subject}.",
            f"Write a professional email about {subject}.",
        ]
    )
    body = rng.choice(
        [
            f"I hope you are well. I am writing to ask about {subject}. Could you please let me know what the next steps are?",
            f"I hope this message finds you well. I would like to talk with you about {subject}. Please let me know when you have time this week.",
            f"Thank you for your help so far. I have a question about {subject}. Could you please send me more details?",
        ]
    )
    return ask, (
        f"Subject: {capitalised(subject)}\n\nDear {name},\n\n{body}\n\n"
        f"Thank you for your time.\n\nBest regards,\n{rng.choice(c.NAMES)}"
    )


def comparison(rng: random.Random) -> Pair:
    """Compare two things."""
    first, second = rng.choice(c.PAIRS)
    verb = "is" if not first.endswith("s") else "are"
    ask = rng.choice(
        [
            f"Compare {first} and {second}.",
            f"What is the difference between {first} and {second}?",
            f"Write about the pros and cons of {first} and {second}.",
            f"Which is better, {first} or {second}?",
            f"Compare and contrast {first} with {second}.",
        ]
    )
    return ask, (
        f"Both {first} and {second} have advantages and disadvantages. "
        f"{capitalised(first)} {verb} a good choice for people who want something familiar and simple, "
        f"while {second} can be better for people with other needs. "
        f"The best choice depends on your time, your budget and your goals."
    )


def product(rng: random.Random) -> Pair:
    """A slogan, description or name for a product."""
    item = rng.choice(c.PRODUCTS)
    bare = item.split(" ", 1)[1]
    return rng.choice(
        [
            (f"Write a slogan for {item}.", f'"The {bare} that makes every day better."'),
            (
                f"Write an advertisement for {item}.",
                f"Are you looking for {item} you can trust? Our {bare} is simple, strong and easy to use. Try it today and see the difference!",
            ),
            (
                f"Describe {item} to a customer.",
                f"This {bare} is well made and easy to use. It is perfect for home, work and travel, and it comes at a fair price.",
            ),
            (
                f"Suggest three names for {item}.",
                f"Here are three names for {item}:\n\n{numbered(['Bright Day', 'Simple Step', 'True North'])}",
            ),
            (
                f"Write a review of {item}.",
                f"I bought this {bare} a month ago and I am very happy with it. It is easy to use and works well every day. I would recommend it to a friend.",
            ),
            (
                f"Give three reasons to buy {item}.",
                f"Here are three reasons to buy {item}:\n\n{numbered(['It saves time.', 'It is easy to use.', 'It has a fair price.'])}",
            ),
        ]
    )


def sentence_edit(rng: random.Random) -> Pair:
    """Rewrite a simple sentence."""
    subject, base, present, past, participle, thing = rng.choice(c.SENTENCES)
    now = capitalised(f"{subject} {present} {thing}.")
    then = capitalised(f"{subject} {past} {thing}.")
    joint = rng.choice([": ", ":\n", ".\n\n"])
    return rng.choice(
        [
            (f"Rewrite this sentence in the past tense{joint}{now}", then),
            (f"Rewrite this sentence in the present tense{joint}{then}", now),
            (
                f"Rewrite this sentence in the future tense{joint}{now}",
                capitalised(f"{subject} will {base} {thing}."),
            ),
            (
                f"Change the sentence to the passive voice{joint}{then}",
                capitalised(f"{thing} was {participle} by {subject}."),
            ),
            (f"Turn this sentence into a question{joint}{now}", f"Does {subject} {base} {thing}?"),
            (
                f"Make this sentence negative{joint}{now}",
                capitalised(f"{subject} does not {base} {thing}."),
            ),
            (
                f"Correct the grammar of this sentence{joint}{capitalised(subject)} {base} {thing} yesterday.",
                capitalised(f"{subject} {past} {thing} yesterday."),
            ),
            (
                f"Add an adverb to the sentence{joint}{then}",
                capitalised(f"{subject} quickly {past} {thing}."),
            ),
            (
                f"Find the verb in this sentence{joint}{now}",
                f'The verb in the sentence is "{present}".',
            ),
            (
                f"Find the subject of this sentence{joint}{now}",
                f'The subject of the sentence is "{capitalised(subject)}".',
            ),
        ]
    )


def word(rng: random.Random) -> Pair:
    """Synonyms, antonyms, letters."""
    if rng.random() < 0.4:
        one = rng.choice(list(c.ADJECTIVES))
        other = c.ADJECTIVES[one]
        return rng.choice(
            [
                (f"Give a synonym for {one}.", f'A synonym for "{one}" is "{other}".'),
                (f"What is another word for {one}?", f'Another word for "{one}" is "{other}".'),
            ]
        )
    one = rng.choice(list(c.ANTONYMS))
    other = c.ANTONYMS[one]
    if rng.random() < 0.3:
        return (
            f'Use the word "{one}" in a sentence.',
            f'The word "{one}" can be used like this: "The room was {one} when we arrived."',
        )
    return rng.choice(
        [
            (f"What is the opposite of {one}?", f'The opposite of "{one}" is "{other}".'),
            (f"Give an antonym for {one}.", f'An antonym for "{one}" is "{other}".'),
        ]
    )


def sentiment(rng: random.Random) -> Pair:
    """Classify a review."""
    label = rng.choice(list(c.FEELINGS))
    text = rng.choice(c.FEELINGS[label])
    ask = rng.choice(
        [
            f"Classify the sentiment of this review: {text}",
            f"Is the following text positive or negative?\n\n{text}",
            f"Identify the tone of this sentence.\n{text}",
        ]
    )
    return ask, f"The sentiment of the text is {label}."


def grouping(rng: random.Random) -> Pair:
    """Name members of a group, sort them, find the odd one out."""
    group = rng.choice(list(c.GROUPS))
    members = c.GROUPS[group]
    count = rng.choice([3, 4, 5])
    chosen = rng.sample(members, count)
    kind = rng.randrange(4)
    if kind == 0:
        number = rng.choice([str(count), COUNTS[count]])
        ask = rng.choice(
            [
                f"List {number} {group}.",
                f"Name {number} {group}.",
                f"Give me a list of {number} {group}.",
            ]
        )
        return (
            ask,
            f"Here are {COUNTS[count]} {group}:\n\n{numbered([capitalised(item) for item in chosen])}",
        )
    if kind == 1:
        return (
            f"Sort these words in alphabetical order: {', '.join(chosen)}.",
            f"The words in alphabetical order are: {', '.join(sorted(chosen))}.",
        )
    if kind == 2:
        other = rng.choice([name for name in c.GROUPS if name != group])
        odd = rng.choice([item for item in c.GROUPS[other] if item not in members])
        shown = [*chosen, odd]
        rng.shuffle(shown)
        return (
            f"Which of these does not belong to the group: {', '.join(shown)}?",
            f'"{capitalised(odd)}" does not belong to the group, because the others are {group}.',
        )
    return (
        f"Put these words into a group: {', '.join(chosen)}.",
        f"{capitalised(joined(chosen))} are all {group}.",
    )


def role(rng: random.Random) -> Pair:
    """Answer in a role."""
    who = rng.choice(c.ROLES)
    goal, doing = rng.choice(list(c.ADVICE))
    tips = rng.sample(c.ADVICE[goal, doing], 2)
    ask = rng.choice(
        [
            f"Imagine you are {who}. How would you help someone {goal}?",
            f"Pretend to be {who} and give advice on {doing}.",
            f"You are {who}. Tell me how to {goal}.",
            f"Act as {who} and answer: what is the key to {doing}?",
        ]
    )
    return ask, (
        f"As {who}, I would say that the key to {doing} is to take one step at a time. "
        f"{tips[0][1]} {tips[1][1]} With a little patience, you will see the results."
    )


def scene(rng: random.Random) -> Pair:
    """Describe a scene, a person or a feeling."""
    place, hero, theme = rng.choice(c.PLACES), rng.choice(c.CHARACTERS), rng.choice(c.THEMES)
    return rng.choice(
        [
            (
                f"Describe {place}.",
                f"It is {place}. The air is fresh and the streets are calm. People walk slowly, and in the evening the windows are full of warm light.",
            ),
            (
                f"Write a descriptive paragraph about {theme}.",
                f"There is something special about {theme}. It is full of color and sound, and it changes from moment to moment. Anyone who stops to look will remember it for a long time.",
            ),
            (
                f"Describe {hero} in two sentences.",
                f"{capitalised(hero)} stood quietly with bright eyes and a gentle smile. There was a story in every step.",
            ),
            (
                f"Write a speech about {theme}.",
                f"Dear friends, today I want to speak about {theme}. It reminds us of what is important in life. Let us share it with each other and keep it in our hearts. Thank you.",
            ),
            (
                f"Write a conversation about {theme} between two friends.",
                f"A: I was thinking about {theme} today.\nB: Really? What made you think of it?\nA: It makes me feel calm and happy.\nB: I feel the same way. Let us talk about it more tomorrow.",
            ),
            (
                f"What do you think about {theme}?",
                f"I think {theme} is a good thing to talk about. It means something different to everyone, and that is what makes it interesting.",
            ),
            (
                f"Write a blog post about a visit to {place}.",
                f"Last week I visited {place}. The first thing I noticed was the quiet. I walked through the narrow streets, talked with the people and tasted the local food. It was a trip I will never forget.",
            ),
        ]
    )


def arithmetic(rng: random.Random) -> Pair:
    """Areas, averages, percentages and the like."""
    a, b = rng.randint(2, 20), rng.randint(2, 20)
    values = [rng.randint(1, 30) for _ in range(3)]
    values[2] += (-sum(values)) % 3
    percent, whole = rng.choice([10, 20, 25, 50]), rng.randint(1, 20) * 20
    return rng.choice(
        [
            (
                f"Find the area of a rectangle with length {a} and width {b}.",
                f"The area of a rectangle is length times width.\nThe area is {a} * {b} = {a * b}.",
            ),
            (
                f"Find the perimeter of a rectangle with sides {a} and {b}.",
                f"The perimeter is 2 * ({a} + {b}) = 2 * {a + b} = {2 * (a + b)}.",
            ),
            (
                f"Find the average of {values[0]}, {values[1]} and {values[2]}.",
                f"The sum is {values[0]} + {values[1]} + {values[2]} = {sum(values)}.\nThe average is {sum(values)} / 3 = {sum(values) // 3}.",
            ),
            (
                f"What is {percent}% of {whole}?",
                f"{percent}% of {whole} is {whole * percent // 100}.",
            ),
            (
                f"Solve for x: x + {a} = {a + b}",
                f"Subtract {a} from both sides.\nx = {a + b} - {a} = {b}",
            ),
            (f"Solve for x: {a}x = {a * b}", f"Divide both sides by {a}.\nx = {a * b} / {a} = {b}"),
        ]
    )


def missing(rng: random.Random) -> Pair:
    """The prompt refers to something that is not there."""
    thing = rng.choice(
        [
            "text",
            "sentence",
            "paragraph",
            "article",
            "list",
            "code",
            "image",
            "email",
            "poem",
            "table",
        ]
    )
    verb = rng.choice(
        [
            "Edit",
            "Summarize",
            "Rewrite",
            "Translate",
            "Analyze",
            "Classify",
            "Check",
            "Improve",
            "Describe",
            "Shorten",
        ]
    )
    return (
        f"{verb} the following {thing}.",
        f"Please share the {thing} you would like me to {verb.lower()}, and I will be happy to help.",
    )


GENERATORS: tuple[tuple[Generator, float], ...] = (
    (concept, 4),
    (advice, 4),
    (country, 2),
    (element, 1),
    (story, 3),
    (poem, 1.5),
    (email, 2),
    (comparison, 1.5),
    (product, 2),
    (sentence_edit, 2),
    (word, 1),
    (sentiment, 0.7),
    (grouping, 1.5),
    (role, 1.5),
    (scene, 2),
    (arithmetic, 1.5),
    (missing, 0.7),
)


def instruction(rng: random.Random) -> tuple[str, Pair]:
    """One record: the generator's name and its (prompt, response)."""
    generators = [generator for generator, _ in GENERATORS]
    weights = [weight for _, weight in GENERATORS]
    chosen = rng.choices(generators, weights)[0]
    return chosen.__name__, chosen(rng)
