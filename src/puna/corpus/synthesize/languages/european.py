"""The basics in English, German, French, Italian, Portuguese and Spanish. Data."""

from puna.corpus.synthesize.languages.basics import Basics, Said

ENGLISH = Basics(
    role="You are the assistant of {name}. Answer from this page.",
    title="{name}: opening hours and contact",
    days=("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    week="Monday to Friday",
    span="{a} to {b}",
    closed="closed",
    closed_needle="closed",
    labels={"hours": "{day}", "closed": "{day}", "phone": "Phone", "price": "{product}, price", "email": "E-mail"},
    sentences={
        "hours": ("On {day} we are open from {v}.", "{day}: {v}."),
        "closed": ("On {day} we are closed.",),
        "phone": ("Our phone number is {v}.", "Call us at {v}."),
        "price": ("{product} costs {v}.", "The price of {product} is {v}."),
        "email": ("Our e-mail address is {v}.", "Write to {v}."),
    },
    questions={
        "hours": ("When are you open on {day}?", "What are your hours on {day}?", "Are you open on {day}?"),
        "closed": ("When are you open on {day}?", "What are your hours on {day}?", "Are you open on {day}?"),
        "phone": ("What is your phone number?", "How can I call you?", "Your phone number, please."),
        "price": ("How much is {product}?", "What does {product} cost?", "What is the price of {product}?"),
        "email": ("What is your e-mail address?", "Where can I write to?", "Do you have an e-mail address?"),
    },
    answers={
        "hours": "On {day} we are open from {a} to {b}.",
        "closed": "On {day} we are closed.",
        "phone": "Our phone number is {v}.",
        "price": "{product} costs {v}.",
        "email": "Our e-mail address is {v}.",
    },
    not_said="does not say",
    refusals=(
        "I'm sorry, the page does not say that. Please ask our team.",
        "The page does not say that. Can I help you with something else?",
    ),
    off_topic=("Will it rain tomorrow?", "Who wrote Hamlet?", "Tell me a joke.", "Do you have a car park?"),
    talk={
        "greeting": Said(
            ("Hello!", "Hi!", "Good morning!", "Hello"),
            "Hello! I am the assistant of {name}. How can I help you?",
            ("{name}",),
        ),
        "who": Said(
            ("Who are you?", "Are you human?", "What is your name?"),
            "I am the assistant of {name}: a computer program, not a human.",
            ("{name}", "program"),
        ),
        "thanks": Said(("Thank you!", "Thanks a lot."), "You're welcome! I am glad that I could help.", ("welcome",)),
        "bye": Said(("Goodbye!", "Bye!"), "Goodbye! We look forward to seeing you at {name}.", ("goodbye",)),
    },
)

GERMAN = Basics(
    role="Du bist der Assistent von {name}. Antworte von dieser Seite.",
    title="{name}: Öffnungszeiten und Kontakt",
    days=("Montag", "Dienstag", "Mittwoch", "Donnerstag", "Freitag", "Samstag", "Sonntag"),
    week="Montag bis Freitag",
    span="{a} bis {b}",
    closed="geschlossen",
    closed_needle="geschlossen",
    labels={"hours": "{day}", "closed": "{day}", "phone": "Telefon", "price": "{product}, Preis", "email": "E-Mail"},
    sentences={
        "hours": ("Am {day} haben wir von {v} geöffnet.", "{day}: {v} Uhr."),
        "closed": ("Am {day} haben wir geschlossen.",),
        "phone": ("Unsere Telefonnummer ist {v}.", "Rufen Sie uns an: {v}."),
        "price": ("{product} kostet {v}.", "Der Preis von {product} ist {v}."),
        "email": ("Unsere E-Mail-Adresse ist {v}.", "Schreiben Sie uns: {v}."),
    },
    questions={
        "hours": (
            "Wann haben Sie am {day} geöffnet?", "Wann habt ihr am {day} offen?", "Haben Sie am {day} geöffnet?",
            "Wie sind Ihre Öffnungszeiten am {day}?", "Von wann bis wann ist am {day} offen?",
        ),
        "closed": (
            "Wann haben Sie am {day} geöffnet?", "Wann habt ihr am {day} offen?", "Haben Sie am {day} geöffnet?",
            "Wie sind Ihre Öffnungszeiten am {day}?",
        ),
        "phone": (
            "Wie ist Ihre Telefonnummer?", "Wie kann ich Sie anrufen?", "Unter welcher Nummer erreiche ich Sie?",
            "Ich möchte anrufen. Welche Nummer haben Sie?",
        ),
        "price": (
            "Was kostet {product}?", "Wie viel kostet {product}?", "Wie teuer ist {product}?",
            "Was ist der Preis von {product}?",
        ),
        "email": (
            "Wie ist Ihre E-Mail-Adresse?", "Wohin kann ich schreiben?",
            "An welche Adresse kann ich eine E-Mail senden?",
        ),
    },
    answers={
        "hours": "Am {day} haben wir von {a} bis {b} geöffnet.",
        "closed": "Am {day} haben wir geschlossen.",
        "phone": "Unsere Telefonnummer ist {v}.",
        "price": "{product} kostet {v}.",
        "email": "Unsere E-Mail-Adresse ist {v}.",
    },
    not_said="steht nicht",
    refusals=(
        "Es tut mir leid, das steht nicht auf der Seite. Bitte fragen Sie unser Team.",
        "Das steht nicht auf dieser Seite. Kann ich Ihnen sonst helfen?",
        "Leider steht nicht auf der Seite, was Sie wissen möchten. Bitte rufen Sie uns an.",
    ),
    off_topic=(
        "Wie wird das Wetter morgen?", "Erzähl mir einen Witz.", "Wer ist der Bundeskanzler?", "Gibt es Parkplätze?",
        "Darf ich meinen Hund mitbringen?",
    ),
    talk={
        "greeting": Said(
            ("Hallo!", "Guten Tag!", "Guten Morgen!", "Hallo", "Grüß Gott!", "Moin!"),
            "Hallo! Ich bin der Assistent von {name}. Wie kann ich Ihnen helfen?",
            ("{name}",),
        ),
        "who": Said(
            ("Wer sind Sie?", "Wer bist du?", "Sind Sie ein Mensch?", "Wie heißen Sie?", "Bist du ein Roboter?"),
            "Ich bin der Assistent von {name}: ein Computerprogramm, kein Mensch.",
            ("{name}", "Computerprogramm"),
        ),
        "thanks": Said(
            ("Danke!", "Vielen Dank!", "Danke schön.", "Super, danke."), "Gern geschehen! Ich helfe gern.", ("Gern",)
        ),
        "bye": Said(
            ("Auf Wiedersehen!", "Tschüss!", "Bis bald!"),
            "Auf Wiedersehen! {name} freut sich auf Ihren Besuch.",
            ("Wiedersehen",),
        ),
    },
)  # fmt: skip

FRENCH = Basics(
    role="Tu es l'assistant de {name}. Réponds à partir de cette page.",
    title="{name} : horaires et contact",
    days=("lundi", "mardi", "mercredi", "jeudi", "vendredi", "samedi", "dimanche"),
    week="lundi à vendredi",
    span="{a} à {b}",
    closed="fermé",
    closed_needle="fermés",
    labels={"hours": "{day}", "closed": "{day}", "phone": "Téléphone", "price": "{product}, prix", "email": "E-mail"},
    sentences={
        "hours": ("Le {day}, nous sommes ouverts de {v}.", "{day} : {v}."),
        "closed": ("Le {day}, nous sommes fermés.",),
        "phone": ("Notre numéro de téléphone est le {v}.", "Appelez-nous au {v}."),
        "price": ("{product} coûte {v}.", "Le prix de {product} est de {v}."),
        "email": ("Notre adresse e-mail est {v}.", "Écrivez-nous à {v}."),
    },
    questions={
        "hours": (
            "Quels sont vos horaires le {day} ?", "Quand êtes-vous ouverts le {day} ?", "Êtes-vous ouverts le {day} ?",
            "À quelle heure ouvrez-vous le {day} ?",
        ),
        "closed": (
            "Quels sont vos horaires le {day} ?", "Quand êtes-vous ouverts le {day} ?", "Êtes-vous ouverts le {day} ?",
        ),
        "phone": (
            "Quel est votre numéro de téléphone ?", "Comment puis-je vous appeler ?",
            "À quel numéro puis-je vous joindre ?",
        ),
        "price": (
            "Combien coûte {product} ?", "Quel est le prix de {product} ?", "C'est combien, {product} ?",
        ),
        "email": (
            "Quelle est votre adresse e-mail ?", "Où puis-je vous écrire ?", "À quelle adresse envoyer un e-mail ?",
        ),
    },
    answers={
        "hours": "Le {day}, nous sommes ouverts de {a} à {b}.",
        "closed": "Le {day}, nous sommes fermés.",
        "phone": "Notre numéro de téléphone est le {v}.",
        "price": "{product} coûte {v}.",
        "email": "Notre adresse e-mail est {v}.",
    },
    not_said="ne le dit pas",
    refusals=(
        "Je suis désolé, la page ne le dit pas. Demandez à notre équipe, s'il vous plaît.",
        "La page ne le dit pas. Puis-je vous aider autrement ?",
    ),
    off_topic=(
        "Quel temps fera-t-il demain ?", "Raconte-moi une blague.", "Qui est le président ?", "Y a-t-il un parking ?",
        "Puis-je venir avec mon chien ?",
    ),
    talk={
        "greeting": Said(
            ("Bonjour !", "Bonjour", "Salut !", "Bonsoir !", "Coucou !"),
            "Bonjour ! Je suis l'assistant de {name}. Comment puis-je vous aider ?",
            ("{name}",),
        ),
        "who": Said(
            ("Qui êtes-vous ?", "Qui es-tu ?", "Êtes-vous humain ?", "Comment vous appelez-vous ?", "Es-tu un robot ?"),
            "Je suis l'assistant de {name} : un programme informatique, pas un humain.",
            ("{name}", "programme"),
        ),
        "thanks": Said(
            ("Merci !", "Merci beaucoup !", "Merci bien.",
                "Super, merci."), "Avec plaisir ! Je vous en prie.", ("plaisir",)
        ),
        "bye": Said(
            ("Au revoir !", "À bientôt !", "Bonne journée !"), "Au revoir et à bientôt chez {name} !", ("au revoir",)
        ),
    },
)  # fmt: skip

ITALIAN = Basics(
    role="Sei l'assistente di {name}. Rispondi in base a questa pagina.",
    title="{name}: orari e contatti",
    days=("lunedì", "martedì", "mercoledì", "giovedì", "venerdì", "sabato", "domenica"),
    week="lunedì - venerdì",
    span="{a} - {b}",
    closed="chiuso",
    closed_needle="chiusi",
    labels={"hours": "{day}", "closed": "{day}", "phone": "Telefono", "price": "{product}, prezzo", "email": "E-mail"},
    sentences={
        "hours": ("Giorno di apertura: {day}, {v}.", "{day}: {v}."),
        "closed": ("Giorno di chiusura: {day}.",),
        "phone": ("Il nostro numero di telefono è {v}.", "Chiamateci al numero {v}."),
        "price": ("{product} costa {v}.", "Il prezzo di {product} è {v}."),
        "email": ("Il nostro indirizzo e-mail è {v}.", "Scriveteci a {v}."),
    },
    questions={
        "hours": (
            "Quali sono gli orari di {day}?", "Quando siete aperti di {day}?", "Siete aperti {day}?",
            "A che ora aprite {day}?",
        ),
        "closed": (
            "Quali sono gli orari di {day}?", "Quando siete aperti di {day}?", "Siete aperti {day}?",
        ),
        "phone": (
            "Qual è il vostro numero di telefono?", "Come posso chiamarvi?", "A quale numero posso telefonare?",
        ),
        "price": (
            "Quanto costa {product}?", "Qual è il prezzo di {product}?", "Quanto viene {product}?",
        ),
        "email": (
            "Qual è il vostro indirizzo e-mail?", "Dove posso scrivervi?",
            "A quale indirizzo posso mandare una e-mail?",
        ),
    },
    answers={
        "hours": "Di {day} siamo aperti dalle {a} alle {b}.",
        "closed": "Di {day} siamo chiusi.",
        "phone": "Il nostro numero di telefono è {v}.",
        "price": "{product} costa {v}.",
        "email": "Il nostro indirizzo e-mail è {v}.",
    },
    not_said="non lo dice",
    refusals=(
        "Mi dispiace, la pagina non lo dice. Chiedete al nostro personale, per favore.",
        "La pagina non lo dice. Posso aiutarla in altro modo?",
    ),
    off_topic=(
        "Che tempo farà domani?", "Raccontami una barzelletta.", "Chi è il presidente?", "C'è un parcheggio?",
        "Posso portare il mio cane?",
    ),
    talk={
        "greeting": Said(
            ("Ciao!", "Buongiorno!", "Salve!", "Buonasera!", "Buongiorno"),
            "Buongiorno! Sono l'assistente di {name}. Come posso aiutarla?",
            ("{name}",),
        ),
        "who": Said(
            ("Chi è lei?", "Chi sei?", "Sei umano?", "Come ti chiami?", "Sei un robot?"),
            "Sono l'assistente di {name}: un programma, non un essere umano.",
            ("{name}", "programma"),
        ),
        "thanks": Said(
            ("Grazie!", "Grazie mille!", "Molte grazie.", "Perfetto, grazie."), "Prego! È stato un piacere.", ("Prego",)
        ),
        "bye": Said(("Arrivederci!", "A presto!",
            "Buona giornata!"), "Arrivederci e a presto da {name}!", ("arrivederci",)),
    },
)  # fmt: skip

PORTUGUESE = Basics(
    role="Você é o assistente de {name}. Responda a partir desta página.",
    title="{name}: horários e contato",
    days=("segunda-feira", "terça-feira", "quarta-feira", "quinta-feira", "sexta-feira", "sábado", "domingo"),
    week="segunda a sexta-feira",
    span="{a} às {b}",
    closed="fechado",
    closed_needle="fechados",
    labels={"hours": "{day}", "closed": "{day}", "phone": "Telefone", "price": "{product}, preço", "email": "E-mail"},
    sentences={
        "hours": ("Horário de {day}: {v}.", "{day}: {v}."),
        "closed": ("Horário de {day}: fechado.",),
        "phone": ("Nosso telefone é {v}.", "Ligue para {v}."),
        "price": ("{product} custa {v}.", "O preço de {product} é {v}."),
        "email": ("Nosso e-mail é {v}.", "Escreva para {v}."),
    },
    questions={
        "hours": (
            "Qual é o horário de {day}?", "Quando vocês abrem no dia de {day}?", "Vocês abrem na {day}?",
            "Que horas abre: {day}?",
        ),
        "closed": ("Qual é o horário de {day}?", "Quando vocês abrem no dia de {day}?", "Vocês abrem na {day}?"),
        "phone": ("Qual é o telefone de vocês?", "Como posso ligar para vocês?", "Para que número posso ligar?"),
        "price": ("Quanto custa {product}?", "Qual é o preço de {product}?", "Quanto é {product}?"),
        "email": ("Qual é o e-mail de vocês?", "Para onde posso escrever?", "Para que endereço mando um e-mail?"),
    },
    answers={
        "hours": "Horário de {day}: abrimos das {a} às {b}.",
        "closed": "Horário de {day}: estamos fechados.",
        "phone": "Nosso telefone é {v}.",
        "price": "{product} custa {v}.",
        "email": "Nosso e-mail é {v}.",
    },
    not_said="não diz isso",
    refusals=(
        "Sinto muito, a página não diz isso. Por favor, pergunte à nossa equipe.",
        "A página não diz isso. Posso ajudar em outra coisa?",
    ),
    off_topic=(
        "Como vai ser o tempo amanhã?", "Conte uma piada.", "Quem é o presidente?", "Há estacionamento?",
        "Posso levar meu cachorro?",
    ),
    talk={
        "greeting": Said(
            ("Olá!", "Bom dia!", "Oi!", "Boa noite!", "Boa tarde!"),
            "Olá! Eu sou o assistente de {name}. Como posso ajudar?",
            ("{name}",),
        ),
        "who": Said(
            ("Quem é você?", "Você é humano?", "Qual é o seu nome?", "Você é um robô?", "Com quem estou falando?"),
            "Eu sou o assistente de {name}: um programa de computador, não um humano.",
            ("{name}", "programa"),
        ),
        "thanks": Said(
            ("Obrigado!", "Muito obrigada!", "Obrigado pela ajuda."), "De nada! Fico feliz em ajudar.", ("De nada",)
        ),
        "bye": Said(("Tchau!", "Até logo!", "Adeus!"), "Até logo! {name} espera a sua visita.", ("até logo",)),
    },
)  # fmt: skip

SPANISH = Basics(
    role="Eres el asistente de {name}. Responde a partir de esta página.",
    title="{name}: horario y contacto",
    days=("lunes", "martes", "miércoles", "jueves", "viernes", "sábado", "domingo"),
    week="lunes a viernes",
    span="{a} a {b}",
    closed="cerrado",
    closed_needle="cerrado",
    labels={"hours": "{day}", "closed": "{day}", "phone": "Teléfono", "price": "{product}, precio", "email": "Correo"},
    sentences={
        "hours": ("El {day} abrimos de {v}.", "{day}: {v}."),
        "closed": ("El {day} está cerrado.",),
        "phone": ("Nuestro teléfono es {v}.", "Llámenos al {v}."),
        "price": ("{product} cuesta {v}.", "El precio de {product} es {v}."),
        "email": ("Nuestro correo es {v}.", "Escríbanos a {v}."),
    },
    questions={
        "hours": (
            "¿Cuándo abren el {day}?", "¿Cuál es el horario del {day}?", "¿Abren el {day}?",
            "¿A qué hora abren el {day}?",
        ),
        "closed": ("¿Cuándo abren el {day}?", "¿Cuál es el horario del {day}?", "¿Abren el {day}?"),
        "phone": ("¿Cuál es su teléfono?", "¿Cómo puedo llamarles?", "¿A qué número puedo llamar?"),
        "price": ("¿Cuánto cuesta {product}?", "¿Qué precio tiene {product}?", "¿Cuánto vale {product}?"),
        "email": ("¿Cuál es su correo electrónico?", "¿A dónde puedo escribir?", "¿A qué dirección envío un correo?"),
    },
    answers={
        "hours": "El {day} abrimos de {a} a {b}.",
        "closed": "El {day} está cerrado.",
        "phone": "Nuestro teléfono es {v}.",
        "price": "{product} cuesta {v}.",
        "email": "Nuestro correo es {v}.",
    },
    not_said="no lo dice",
    refusals=(
        "Lo siento, la página no lo dice. Pregunte a nuestro equipo, por favor.",
        "La página no lo dice. ¿Puedo ayudarle en otra cosa?",
    ),
    off_topic=(
        "¿Qué tiempo hará mañana?", "Cuéntame un chiste.", "¿Quién es el presidente?", "¿Hay aparcamiento?",
        "¿Puedo llevar a mi perro?",
    ),
    talk={
        "greeting": Said(
            ("¡Hola!", "¡Buenos días!", "Hola", "¡Buenas tardes!", "¡Buenas noches!"),
            "¡Hola! Soy el asistente de {name}. ¿En qué puedo ayudarle?",
            ("{name}",),
        ),
        "who": Said(
            ("¿Quién es usted?", "¿Quién eres?", "¿Eres humano?", "¿Cómo te llamas?", "¿Eres un robot?"),
            "Soy el asistente de {name}: un programa informático, no un ser humano.",
            ("{name}", "programa"),
        ),
        "thanks": Said(("¡Gracias!", "¡Muchas gracias!",
            "Perfecto, gracias."), "¡De nada! Ha sido un placer.", ("De nada",)),
        "bye": Said(("¡Adiós!", "¡Hasta luego!", "¡Hasta pronto!"), "¡Adiós! {name} espera su visita.", ("adiós",)),
    },
)  # fmt: skip
