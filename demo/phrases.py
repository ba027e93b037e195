"""The words of questions, options and reasoning. Each phrase belongs to one fact, so that it can be read back."""

KIND_PHRASES = {
    "brain T1": "an axial T1-weighted MRI slice of the brain",
    "brain T2": "an axial T2-weighted MRI slice of the brain",
    "knee MRI": "a sagittal MRI slice of the knee",
    "chest CT": "an axial CT slice of the chest",
    "abdominal CT": "an axial CT slice of the abdomen",
    "chest X-ray": "a frontal X-ray of the chest",
    "hand X-ray": "an X-ray of the hand",
}
KIND_SENTENCES = ("This is {}.", "The image shows {}.")

# {} is where the finding is, as in PLACE_PHRASES.
FINDING_SENTENCES = {
    "lesion": ("A focal lesion stands out from the brain around it {}.", "There is a focal brain lesion {}."),
    "enlarged ventricles": (
        "The lateral ventricles are clearly enlarged.",
        "The ventricles are far wider than they should be.",
    ),
    "subdural collection": (
        "A crescent lies between the brain and the skull {}.",
        "There is a crescent-shaped subdural collection {}.",
    ),
    "joint effusion": ("Fluid distends the joint above the patella.", "There is fluid in the suprapatellar pouch."),
    "bone marrow lesion": ("The marrow signal is altered {}.", "There is a patch of abnormal marrow {}."),
    "popliteal cyst": ("A bright oval cyst lies behind the joint.", "There is a cyst in the popliteal fossa."),
    "nodule": ("A round nodule lies in the lung {}.", "There is a round dense spot in the lung {}."),
    "pleural effusion": ("Fluid layers in the pleural space {}.", "There is pleural fluid {}."),
    "pneumothorax": ("Free air surrounds the lung {}.", "The lung has fallen away from the chest wall {}."),
    "liver lesion": ("A dark round area lies within the liver.", "There is a focal lesion in the liver."),
    "renal cyst": ("A dark round cyst bulges from the kidney {}.", "There is a cyst of the kidney {}."),
    "kidney stone": ("A very bright stone lies in the kidney {}.", "There is a stone in the kidney {}."),
    "aortic aneurysm": ("The aorta is much wider than normal.", "There is an enlarged round aorta before the spine."),
    "enlarged heart": ("The heart is wider than half of the chest.", "The heart shadow is clearly enlarged."),
    "pneumonia": ("A patchy hazy opacity lies in the lung {}.", "There is an ill-defined opacity in the lung {}."),
    "fracture": ("A break runs through the bone {}.", "There is a fracture line {}."),
    "bone lesion": ("A bubble-like lucent lesion expands the bone {}.", "There is a lytic bone lesion {}."),
    "metal foreign body": ("A very bright metal object lies in the hand.", "There is a piece of metal in the hand."),
}
NORMAL_SENTENCES = ("All structures look regular and nothing abnormal is seen.", "No abnormality is visible.")

PLACE_PHRASES = {
    "left": "on the left side of the image",
    "right": "on the right side of the image",
    "femur": "in the femur",
    "tibia": "in the tibia",
    "thumb": "in the thumb",
    "index finger": "in the index finger",
    "middle finger": "in the middle finger",
    "ring finger": "in the ring finger",
    "little finger": "in the little finger",
}

# The option, and its letter.
CONCLUSIONS = ("So the answer is {} ({}).", "The option that fits is {} ({}).")

# What an option of each meaning can read. A yes or no is put in one style through all options of a question.
MODALITY_OPTIONS = {
    "MRI": ("MRI", "Magnetic resonance imaging"),
    "CT": ("CT", "Computed tomography"),
    "X-ray": ("X-ray", "Radiograph"),
}
BODY_OPTIONS = {body: (body,) for body in ("Brain", "Knee", "Chest", "Abdomen", "Hand")}
ABNORMALITY_OPTIONS = {"yes": ("Yes", "Yes.", "Yes, there is an abnormality"), "no": ("No", "No.", "No, it is normal")}
FINDING_OPTIONS = {
    "lesion": ("Brain lesion", "Focal lesion"),
    "enlarged ventricles": ("Enlarged ventricles", "Hydrocephalus"),
    "subdural collection": ("Subdural collection", "Subdural hematoma"),
    "joint effusion": ("Joint effusion", "Joint fluid"),
    "bone marrow lesion": ("Bone marrow lesion", "Marrow edema"),
    "popliteal cyst": ("Popliteal cyst", "Baker cyst"),
    "nodule": ("Lung nodule", "Nodule"),
    "pleural effusion": ("Pleural effusion", "Pleural fluid"),
    "pneumothorax": ("Pneumothorax", "Collapsed lung"),
    "liver lesion": ("Liver lesion", "Hepatic lesion"),
    "renal cyst": ("Renal cyst", "Kidney cyst"),
    "kidney stone": ("Kidney stone", "Renal stone"),
    "aortic aneurysm": ("Aortic aneurysm", "Enlarged aorta"),
    "enlarged heart": ("Enlarged heart", "Cardiomegaly"),
    "pneumonia": ("Pneumonia", "Lung opacity"),
    "fracture": ("Fracture", "Fractured bone"),
    "bone lesion": ("Bone lesion", "Lytic lesion"),
    "metal foreign body": ("Metal foreign body", "Foreign body"),
    "none": ("No abnormality", "Normal appearance"),
}
PLACE_OPTIONS = {
    "left": ("Left side of the image", "Left"),
    "right": ("Right side of the image", "Right"),
    **{place: (place.capitalize(),) for place in PLACE_PHRASES if place not in ("left", "right")},
}

QUESTIONS = {
    "modality": (
        "What imaging technique was used to create this image?",
        "What kind of scan is this?",
        "Which imaging modality does this picture come from?",
        "How was this image made?",
    ),
    "body part": (
        "What part of the body does this image show?",
        "Which body region appears in this image?",
        "What content appears in this image?",
        "Which part of the body was examined here?",
    ),
    "abnormality": (
        "Is any abnormality evident in this image?",
        "Is there any evidence of abnormality observable in this image?",
        "Is anything abnormal detected in the image?",
        "Does this image show something abnormal?",
    ),
    "finding": (
        "What can be observed in this image?",
        "What is the term for the anomaly depicted in the image, if there is one?",
        "What kind of irregularity can be observed in the presented image?",
        "What does this image show in terms of abnormalities?",
    ),
    # {} is what is asked about, as in FINDING_NOUNS.
    "place": (
        "Where is the {} located in this image?",
        "Where in this image does the {} lie?",
        "In which place does this image show the {}?",
    ),
}
FINDING_NOUNS = {finding: options[0].lower() for finding, options in FINDING_OPTIONS.items()}
