"""Vocabulary of pages about organizations: names, participants, actions, objects and question templates. Data."""

# fmt: off
ORGANIZATIONS = (
    "{name} Health Clinic", "{name} Public Library", "{name} Travel Policy", "{name} Rowing Club", "{name} Museum",
    "{name} Office Handbook", "{name} Repair Workshop", "{name} Primary School", "Hotel {name}", "{name} City Office",
    "{name} Foundation", "{name} Software Team", "{name} Tennis Club", "{name} Institute", "{name} Housing Office",
    "{name} Community Garden", "{name} Theatre", "{name} Laboratory", "{name} Swimming Pool", "{name} Cooking School",
    "{name} Employee Handbook", "{name} Privacy Policy", "{name} Dental Practice", "{name} Choir", "{name} Campsite",
)
MODIFIERS = (
    "annual", "travel", "visitor", "parking", "staff", "weekend", "guest", "safety", "training", "membership",
    "overtime",
    "equipment", "security", "payroll", "registration", "evening", "summer", "emergency", "volunteer", "research",
    "grant",
    "laundry", "locker", "storage", "remote work", "sick leave", "privacy", "procurement", "recycling", "swimming",
    "reading room", "family", "student", "garden", "archive", "help desk", "network", "printing", "catering",
    "first aid",
    "booking", "transport", "insurance", "cleaning", "dental", "vaccination", "laboratory", "exhibition", "youth",
    "night",
    "boat", "tennis", "choir", "project", "design", "data", "hiring", "onboarding", "health", "legal", "press",
    "refund",
    "energy", "field trip", "winter", "morning", "customer", "software", "account", "website", "community", "language",
)
SUBJECTS = (
    "Members", "Visitors", "Employees", "Contractors", "Parents", "Volunteers", "Tenants", "Students", "Patients",
    "Guests",
    "Managers", "Drivers", "Teachers", "Suppliers", "Researchers", "Interns", "Trainers", "Residents", "Customers",
    "Applicants", "Team leads", "Nurses", "Cooks", "Authors", "Editors", "Travellers", "Owners", "Players", "Users",
    "Supervisors", "Assistants", "Buyers", "Children", "Adults", "Partners", "Developers", "Designers", "Readers",
)
VERBS = (
    "submit", "return", "renew", "request", "cancel", "collect", "report", "register", "pay for", "file", "book",
    "check",
    "update", "sign", "approve", "review", "send", "order", "replace", "deliver", "change", "borrow", "print", "store",
    "test", "publish", "delete", "share", "clean", "discuss",
)
OBJECTS = (
    "travel requests", "lost keys", "library cards", "expense reports", "incident reports", "time sheets", "permits",
    "loan agreements", "medical forms", "lockers", "tickets", "badges", "invoices", "laptops", "phones", "uniforms",
    "contracts", "applications", "complaints", "receipts", "passwords", "samples", "boats", "instruments", "tools",
    "books",
    "journals", "rooms", "meals", "prescriptions", "test results", "photos", "drawings", "data sets", "licences",
    "certificates", "appointments", "courses", "grants", "holidays", "documents", "accounts", "backups", "meetings",
    "projects", "proposals", "bicycles", "vehicles", "chemicals", "plants", "tents", "rackets", "costumes", "posters",
)
MODALS = ("must", "can", "should", "may", "have to")
LEADS = ("", "", "", "", "As a rule, ", "In most cases, ", "Since last year, ", "From now on, ", "By agreement, ")
TAILS = (
    "", "", "", "", "", " unless a manager agrees otherwise", " and nobody else", ", also on holidays",
    " at no extra cost",
)

# Subjects of records, by the kind of value.
NOUNS: dict[str, tuple[str, ...]] = {
    "amount": ("fee", "deposit", "fine", "allowance", "budget", "charge"),
    "date": ("deadline", "start date", "closing date", "renewal date", "opening day"),
    "time": ("start time", "check-in time", "closing time", "meeting time"),
    "duration": ("notice period", "waiting time", "trial period", "processing time", "loan period", "retention period"),
    "count": ("limit", "maximum", "capacity", "group size", "quota", "minimum age"),
    "person": ("coordinator", "manager", "contact", "director", "officer", "supervisor", "lead"),
    "place": ("office", "entrance", "desk", "meeting point", "store room"),
    "identifier": ("code", "form", "reference", "account number", "file number", "room"),
    "email": ("mailbox", "e-mail address", "contact address"),
    "web": ("website", "portal", "web page", "sign-up page"),
    "phone": ("hotline", "phone number", "emergency number", "fax number"),
    "percent": ("rate", "discount", "share", "contribution"),
}
# fmt: on

RECORD_SENTENCES: dict[str, tuple[str, ...]] = {
    "": ("The {x} is {v}.", "At present the {x} is {v}.", "Please note that the {x} is {v}.", "Our {x} is {v}."),
    "amount": ("The {x} has been set at {v}.", "We have fixed the {x} at {v}.", "You pay {v} as the {x}."),
    "person": ("{v} is the {x}.", "{v} works as the {x}.", "If in doubt, ask {v}, the {x}."),
    "place": ("You find the {x} at {v}.", "The {x} is at {v}."),
    "identifier": ("For the {x}, use {v}.", "Everybody needs {v} as the {x}."),
    "email": ("Write to {v}, the {x}.", "For the {x}, use {v}."),
    "web": ("More is on {v}, the {x}.", "Open {v} to see the {x}."),
    "phone": ("Call {v}, the {x}.", "Dial {v} for the {x}."),
    "percent": ("The {x} has been raised to {v}.",),
    "date": ("The {x} falls on {v}.",),
    "count": ("The {x} has been set at {v}.",),
}
RECORD_QUESTIONS: dict[str, tuple[str, ...]] = {
    "": (
        "What is the {x}?",
        "Can you tell me the {x}?",
        "I need to know the {x}.",
        "What does the page say about the {x}?",
        "Do you know the {x}?",
        "Please tell me the {x}.",
        "Tell me about the {x}.",
        "{X}?",
    ),
    "amount": ("How much is the {x}?", "How high is the {x}?"),
    "date": ("When is the {x}?", "On which date is the {x}?"),
    "time": ("When is the {x}?", "At what time is the {x}?"),
    "duration": ("How long is the {x}?",),
    "count": ("How high is the {x}?", "How many does the {x} allow?"),
    "person": ("Who is the {x}?", "What is the name of the {x}?", "How is the {x} called?"),
    "place": ("Where is the {x}?", "Where do I find the {x}?"),
    "identifier": ("Which is the {x}?", "What {x} do I need?"),
    "email": ("Where can I write to? I mean the {x}.", "Which is the {x}?"),
    "web": ("Where online is the {x}?", "What address does the {x} have?"),
    "phone": ("Which number is the {x}?", "Where can I call? I mean the {x}."),
    "percent": ("How high is the {x}?", "How many percent is the {x}?"),
}

# Kind of value, ending of a clause, questions about the ending. {do}: "must members return books".
COMPLEMENTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("duration", "within {v}", ("Within what time {do}?", "How long may it take if {s} {w} {o}?")),
    ("date", "by {v}", ("By which date {do}?", "Until when {do}?", "When {do}?")),
    ("time", "before {v}", ("Before what time {do}?", "Until what time {do}?")),
    ("place", "at {v}", ("Where {do}?", "At which place {do}?")),
    ("identifier", "in room {v}", ("In which room {do}?", "Where {do}?")),
    ("identifier", "with form {v}", ("With which form {do}?", "Which form is there if {s} {w} {o}?")),
    ("identifier", "under the code {v}", ("Under which code {do}?", "What code is needed if {s} {w} {o}?")),
    ("web", "through {v}", ("Through which website {do}?", "Where online {do}?")),
    ("email", "by writing to {v}", ("To which address do {s} write to {w} {o}?", "By writing to whom {do}?")),
    ("phone", "by calling {v}", ("Which number do {s} call to {w} {o}?", "By calling which number {do}?")),
    ("person", "with {v}", ("With whom {do}?", "Who helps when {s} {w} {o}?")),
    ("amount", "for a fee of {v}", ("For what fee {do}?", "How much do {s} pay if they {w} {o}?")),
    ("amount", "for up to {v}", ("For how much {do}?", "Up to what amount {do}?")),
    ("weekday", "on {v}", ("On which day {do}?", "When {do}?")),
    ("count", "up to {v} times a year", ("How often {do}?", "How many times {do}?")),
    ("percent", "with a discount of {v}", ("With what discount {do}?", "How much discount is there if {s} {w} {o}?")),
)
CLAUSE_QUESTIONS = ("What does the page say about {o}?", "What should I know about {o}?", "Tell me about {o}.")

# Further sentences: kind of value, sentence, questions.
STATEMENTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("year", "The {m} team was founded in {v}.", ("When was the {m} team founded?", "Since when is there a {m} team?")),
    ("person", "{v} leads the {m} team.", ("Who leads the {m} team?", "Who is at the head of the {m} team?")),
    (
        "count",
        "The {m} team has {v} members.",
        ("How many members does the {m} team have?", "How large is the {m} team?"),
    ),
    ("place", "The {m} team sits in {v}.", ("Where does the {m} team sit?", "In which place is the {m} team?")),
    ("weekday", "The {m} report comes out on {v}.", ("When does the {m} report come out?",)),
    ("amount", "The {m} course costs {v} per person.", ("How much does the {m} course cost?",)),
    ("duration", "The {m} course lasts {v}.", ("How long does the {m} course last?", "How long is the {m} course?")),
    ("identifier", "The {m} system runs on version {v}.", ("Which version does the {m} system run on?",)),
    ("percent", "The {m} costs grew by {v} last year.", ("By how much did the {m} costs grow last year?",)),
    ("email", "Questions about the {m} rules go to {v}.", ("Where do questions about the {m} rules go?",)),
    ("web", "You can read the {m} rules at {v}.", ("Where can I read the {m} rules?",)),
    ("count", "The {m} hall holds at most {v} people.", ("How many people does the {m} hall hold?",)),
    ("person", "The {m} plan was written by {v}.", ("Who wrote the {m} plan?", "By whom was the {m} plan written?")),
    (
        "time",
        "The {m} meeting begins at {v}.",
        ("When does the {m} meeting begin?", "At what time is the {m} meeting?"),
    ),
    ("date", "The {m} rules were last changed on {v}.", ("When were the {m} rules last changed?",)),
    (
        "phone",
        "For {m} matters, call {v}.",
        ("Which number do I call for {m} matters?", "How do I call about {m} matters?"),
    ),
    ("thing", "The {m} team looks after {v}.", ("What does the {m} team look after?",)),
)

FILLERS = (
    "We review this page every year.",
    "Please speak to a colleague if you are unsure.",
    "This page explains how we work.",
    "The following points hold for everybody.",
    "{S} are always welcome to ask.",
    "We want {m} matters to be simple.",
    "Some of these rules are new to {s}.",
    "Good {m} habits help all of us.",
    "We thank {s} for their patience.",
    "It is important that {s} read this page.",
    "These are the basics; there is more in the long version.",
    "We know that {o} can be difficult.",
)
